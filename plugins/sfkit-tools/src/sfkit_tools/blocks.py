"""Find candidates for the stack of decoder blocks, and the tap of each block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from sfkit.errors import AdapterError
from sfkit.policies.generic.blocks import FIRST_NORMS, Stack, first_tap, norm_width
from sfkit.policies.generic.options import GenericOptions, ImageTokens

_WRAPPED = re.compile(r"(^|\.)base_model\.model\.")


@dataclass
class Candidate:
    """A list of blocks of one class.

    Attributes:
        path: Path of the module that holds them, without PEFT's wrappers, as adapters write it.
        blocks: The blocks, in order.
        after: The norm after the last block with its path, if it has a known name.
        norm: The adapter's option ``norm`` for these blocks; None where the adapter finds the norm itself.
        taps: The tapped module of each layer with its path; None where no module of the layer runs.
    """

    path: str
    blocks: list[nn.Module]
    after: tuple[nn.Module, str] | None = None
    norm: str | None = None
    taps: list[tuple[nn.Module, str] | None] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Class name of the blocks."""
        return type(self.blocks[0]).__name__

    @property
    def fired(self) -> list[tuple[int, tuple[nn.Module, str]]]:
        """Layer and tap of the layers with a running tap."""
        return [(layer, tap) for layer, tap in enumerate(self.taps) if tap is not None]

    @property
    def size(self) -> int:
        """Number of parameter values of all blocks."""
        return sum(parameter.numel() for block in self.blocks for parameter in block.parameters())

    def tappable(self) -> Iterator[nn.Module]:
        """Every module whose input may be the residual stream before a block or after the last one."""
        for block in self.blocks:
            yield block
            yield from (child for _, child in _norms(block))
        if self.after is not None:
            yield self.after[0]

    def choose_taps(self, log: Firings) -> None:
        """Choose the taps among the modules that have run."""
        self.norm = self._norm(log)
        for index, block in enumerate(self.blocks):
            point = first_tap(block, f"{self.path}.{index}", self.norm)
            self.taps.append((point.module, point.path) if log.count(point.module) else None)
        fired = self.after is not None and log.count(self.after[0]) > 0
        self.taps.append(self.after if fired else None)

    def _norm(self, log: Firings) -> str | None:
        block = self.blocks[0]
        found = first_tap(block, self.path).module
        given, seen = log.first(block), log.first(found)
        if seen is not None and (given is None or given is seen or _equal(given, seen)):
            return None
        if given is not None:
            return ""  # tap the block itself; a norm with another input than the block does not come first in it
        fired = [(log.order(child), name) for name, child in _norms(block) if log.count(child)]
        return min(fired)[1] if fired else None


class Firings:
    """Records the first input of modules in a forward, how often they run, and in which order."""

    def __init__(self) -> None:
        self._inputs: dict[nn.Module, Tensor] = {}
        self._counts: dict[nn.Module, int] = {}
        self._order: dict[nn.Module, int] = {}

    def record(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """The forward pre-hook."""
        value = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(value, Tensor) and value.ndim > 1:
            self._counts[module] = self._counts.get(module, 0) + 1
            self._order.setdefault(module, len(self._order))
            self._inputs.setdefault(module, value)

    def first(self, module: nn.Module) -> Tensor | None:
        """The module's first input, ``(b, n, d)`` for decoder blocks; None if it did not run."""
        return self._inputs.get(module)

    def count(self, module: nn.Module) -> int:
        """How often the module ran."""
        return self._counts.get(module, 0)

    def order(self, module: nn.Module) -> int:
        """Position of the module in the order of first runs."""
        return self._order[module]


@contextmanager
def listening(modules: Iterable[nn.Module]) -> Iterator[Firings]:
    """Record the inputs of these modules inside the block."""
    log = Firings()
    handles = [module.register_forward_pre_hook(log.record, with_kwargs=True) for module in dict.fromkeys(modules)]
    try:
        yield log
    finally:
        for handle in handles:
            handle.remove()


def find_candidates(policy: nn.Module) -> list[Candidate]:
    """Every module that holds a list of two or more blocks of one class; only the outermost of nested ones."""
    found: list[Candidate] = []
    for name, holder in policy.named_modules():
        children = [child for _, child in holder.named_children()]
        if not _is_stack(holder, children) or any(_inside(name, other) for other in found):
            continue
        path = _WRAPPED.sub(r"\1", name)
        found.append(Candidate(path, children, _after(policy, path)))
    return found


def _is_stack(holder: nn.Module, children: list[nn.Module]) -> bool:
    numbered = [name for name, _ in holder.named_children()] == [str(index) for index in range(len(children))]
    return (
        numbered
        and len(children) > 1
        and len({type(child) for child in children}) == 1
        and next(children[0].children(), None) is not None
        and next(children[0].parameters(), None) is not None
    )


def _inside(name: str, other: Candidate) -> bool:
    """Whether a module lies inside the blocks of a candidate with known norms, as experts do.

    Blocks inside the stages of a vision tower count as candidates: a stage has no norm of a known name.
    """
    named = any(isinstance(getattr(other.blocks[0], norm, None), nn.Module) for norm in FIRST_NORMS)
    return named and _WRAPPED.sub(r"\1", name).startswith(f"{other.path}.")


def _after(policy: nn.Module, path: str) -> tuple[nn.Module, str] | None:
    options = GenericOptions(blocks=path, tokens=ImageTokens(0), grid=(1, 1, 1), images="images")
    try:
        point = Stack.of(policy, options).points[-1]
    except AdapterError:
        return None
    return None if point is None else (point.module, point.path)


def _norms(block: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in block.named_children() if norm_width(child) is not None]


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors ``(...,)`` have the same shape and values."""
    return first.shape == second.shape and bool((first.detach() == second.detach()).all())
