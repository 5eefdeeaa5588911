"""What teachers, projectors and objectives must return. Shapes are compared in each step, where they come in."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfkit.errors import ComponentError
from sfkit.objectives.base import Objective
from sfkit.registry.component import Configurable
from sfkit.registry.registry import Kind, default_registry
from sfkit.training.observer import StepObserver
from sfkit.training.taps import TapSite
from sfkit.utils.runtime import is_distributed, own_rng
from sfkit.views.types import FeatureMap, Views

if TYPE_CHECKING:
    from sfkit.training.pair import Alignment, AlignmentPair, Compared

#: Values are checked in so many steps at the start, and then at one of :data:`EVERY`: it waits for the device.
FIRST, EVERY = 2, 50
#: Largest relative difference of two losses that differ in masked tokens alone.
_SAME = 1e-4


def broken(kind: Kind, component: Configurable, returned: str, must: str) -> ComponentError:
    """The error about a component: its name, its distribution where it is registered, what it returned and must."""
    cls = type(component)
    targets = (cls, f"{cls.__module__}:{cls.__qualname__}")
    owners = [f" of {entry.distribution}" for entry in default_registry().of_kind(kind) if entry.target in targets]
    name = f"{kind.capitalize()} {component.name!r}{owners[0] if owners else ''} ({cls.__module__}.{cls.__qualname__})"
    return ComponentError(f"{name} {returned}.", f"It must {must}.")


def form(value: object) -> str:
    """Shape and dtype of a tensor ``(...)``, or the type of anything else, in words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def is_finite(values: Tensor, mask: Tensor) -> bool:
    """Whether ``(b, v, gh, gw, d)`` values are finite where the mask ``(b, v, gh, gw)`` is True; it waits."""
    return bool((values.isfinite().all(-1) | ~mask).all())


class ContractCheck(StepObserver):
    """Checks the values that projectors and objectives return, and once that objectives leave masked tokens out.

    Args:
        pairs: What is aligned.
        enabled: Whether to check at all.
    """

    reads_maps = True

    def __init__(self, pairs: Sequence[AlignmentPair], *, enabled: bool) -> None:
        self.pairs = pairs
        self.next_step = 0 if enabled else math.inf
        self._left = FIRST
        self._unproven = set(range(len(pairs)))

    def begin(self, step: int) -> None:
        self._left -= 1
        self.next_step = step + (1 if self._left > 0 else EVERY)

    @torch.no_grad()
    def aligned(self, views: Views, students: Mapping[TapSite, FeatureMap], results: Sequence[Alignment]) -> None:
        """Check each pair.

        Raises:
            ComponentError: A value is not finite where what it is computed from is; a loss has no gradient, or depends
                on masked tokens.
        """
        for index, (pair, result) in enumerate(zip(self.pairs, results, strict=True)):
            tokens, maps = students[pair.site].values, result.compared
            # A policy that diverges, or an overflow in float16, is no fault of a component.
            if maps is None or not (is_finite(maps.target, maps.mask) and is_finite(tokens, maps.mask)):
                continue
            projector = pair.shared_projector
            if projector is not None and not is_finite(maps.projected, maps.mask):
                must = "return finite values where the tokens are finite"
                raise broken("projector", projector, "returned NaN or infinity", must)
            _check_loss(pair.objective, result.loss, maps.mask, tokens.requires_grad)
            if index in self._unproven and bool(maps.mask.any()):
                self._unproven.remove(index)
                _check_masked_tokens(pair.objective, pair.head, maps)


def _check_loss(objective: Objective, loss: Tensor, mask: Tensor, differentiable: bool) -> None:
    """``(b,)`` losses of finite maps, compared where the mask ``(b, v, gh, gw)`` is True."""
    if not bool(loss.isfinite().all()):
        raise broken("objective", objective, "returned NaN or infinity", "return finite losses for finite maps")
    if bool(loss[~mask.flatten(1).any(1)].any()):
        returned = "returned a loss that is not 0 for a sample without a valid token"
        raise broken("objective", objective, returned, "return 0 there")
    if differentiable and not loss.requires_grad and bool(mask.any()):
        must = "return a loss that has a gradient to the projected tokens, and detach nothing of them"
        raise broken("objective", objective, "returned a loss without gradient, which would train nothing", must)


def _check_masked_tokens(objective: Objective, head: nn.Module | None, maps: Compared) -> None:
    """Compute the loss twice, with about half of the tokens masked and two sets of values there."""
    if objective.has_collectives and is_distributed():
        return  # the ranks may be at different steps of the check
    device, objective = maps.mask.device, copy.copy(objective)
    modules = [] if head is None else list(head.modules())
    buffers = [dict(module._buffers) for module in modules]
    for module in modules:  # other tensors, because backward still needs the values of these
        module._buffers.update({name: None if one is None else one.clone() for name, one in module._buffers.items()})
    losses = []
    with own_rng(device, seed=0), torch.autocast(device.type, enabled=False):
        mask = maps.mask & (torch.rand(maps.mask.shape, device=device) < 0.5)
        for _ in range(2):
            filled = [_with_noise(values, mask) for values in (maps.projected, maps.target)]
            with own_rng(device, seed=1):  # an objective may draw tokens
                losses.append(objective.with_head(filled[0], filled[1], mask, head))
    for module, before in zip(modules, buffers, strict=True):
        module._buffers.update(before)
    one, other = losses
    if bool(((one - other).abs() > _SAME * one.abs().clamp(min=_SAME)).any()):
        must = "leave out all tokens where the mask is False"
        raise broken("objective", objective, "returned a loss that depends on masked tokens", must)


def _with_noise(values: Tensor, mask: Tensor) -> Tensor:
    """``(b, v, gh, gw, d)`` values, with noise of their size where the mask ``(b, v, gh, gw)`` is False."""
    valid = mask.unsqueeze(-1)
    size = torch.where(valid, values, 0.0).abs().amax().clamp(min=1.0)
    return torch.where(valid, values, size * torch.randn_like(values))
