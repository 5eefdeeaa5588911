"""Injects the alignment loss of one forward into the backward pass, through the outputs of that forward.

A training loop whose loss is computed outside the policy differentiates the policy's outputs, and nothing else of it.
So each output passes through an identity node of the autograd graph, which has the alignment loss as a further input.
Backward hands the output's gradient on unchanged, and the first such node sends the alignment loss a gradient of its
own. This also makes the projector reachable from what forward returned, which DDP insists on
(``find_unused_parameters=True``). One node for all outputs would run backward through those that the loop never uses.
With several processes that is wanted: DDP waits for every parameter behind any of the outputs, as OFT's unused logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sfkit.utils.pytree import map_tensors, tensors_in
from sfkit.utils.runtime import is_distributed

#: Gives parameters when they are needed.
Parameters: TypeAlias = Callable[[], Iterable[Tensor]]


@dataclass(eq=False)
class PendingLoss:
    """The alignment of one forward. Holds no tensor of the graph, so that keeping it keeps nothing alive.

    Attributes:
        gradient: What backward sends to the alignment loss; None where only an explicit ``add`` counts.
        arrived: Called when a backward pass that accumulates gradients comes by for the first time.
        leaves: Gives the parameters that a backward pass may accumulate into.
        added: The alignment was added to a loss.
        spent: It has been sent with a backward pass.
        passed: A backward pass has been here.
    """

    gradient: Callable[[], Tensor | float] | None = None
    arrived: Callable[[PendingLoss], None] | None = None
    leaves: Parameters = tuple
    added: bool = False
    spent: bool = False
    passed: bool = False
    _last: int = -1

    def share(self, *, accumulates: bool) -> Tensor | float:
        """The gradient of the alignment loss in this backward pass.

        It counts once for each forward, however many backward passes the loop makes through it, and however many of the
        outputs a pass comes through. Passes that only look at gradients (``torch.autograd.grad``) see it, and leave it
        to the one that trains.
        """
        this = torch._C._current_graph_task_id()
        if accumulates and not self.passed:
            self.passed = True
            if self.arrived is not None:
                self.arrived(self)
        if self.gradient is None or self.added or self.spent or this == self._last:
            return 0.0
        self._last, self.spent = this, accumulates
        return self.gradient()


class GradientInjector(torch.autograd.Function):
    """Identity over outputs of a forward, which sends the alignment loss a gradient in backward."""

    @staticmethod
    def forward(
        ctx: Any, args: tuple[PendingLoss, list[bool]], witness: Tensor, loss: Tensor, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Outputs ``(*)``, the alignment loss ``(b,)``, and a witness ``()``: a leaf that this node alone knows."""
        (ctx.pending, alone), ctx.loss = args, loss
        ctx.set_materialize_grads(False)
        # The loop may change an output in place (``logits.div_(2)``): an alias that is no view has the version counter
        # of the original, so that what autograd still needs of it is guarded. Where two outputs share memory, a change
        # of one is one of the other's graph too; a view makes that torch's error.
        return tuple(out.detach() if single else out.view_as(out) for out, single in zip(outputs, alone, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the outputs, ``(*)`` each, unchanged; and one for the alignment loss, ``(b,)``."""
        share = ctx.pending.share(accumulates=_accumulates(ctx))
        loss = ctx.loss
        own = torch.as_tensor(share, dtype=loss.dtype, device=loss.device) / loss.numel()
        return None, None, own.expand_as(loss), *gradients


def _accumulates(ctx: Any) -> bool:
    """True in a backward pass that accumulates into leaves, all or (``inputs=``) some; False in one that only looks.

    The witness is a leaf that nobody can ask for, as it exists in this node alone.
    """
    if torch._C._will_engine_execute_node(ctx.next_functions[0][0]):
        return True
    return any(_is_accumulated_into(leaf) for leaf in ctx.pending.leaves())


def _is_accumulated_into(leaf: Tensor) -> bool:
    """Whether the present backward pass accumulates into a parameter ``(*)``."""
    if not (leaf.is_leaf and leaf.requires_grad):
        return False
    with torch.enable_grad():
        node: Any = leaf.view_as(leaf).grad_fn
    try:
        return bool(torch._C._will_engine_execute_node(node.next_functions[0][0]))
    except RuntimeError:  # torch's answer for a leaf whose gradient autograd.grad was asked for
        return False


def inject(output: object, loss: Tensor | Callable[[Tensor], Tensor], pending: PendingLoss) -> Any:
    """``output`` with its differentiable tensors passed through the injector; None if it holds none.

    Args:
        output: What forward returned.
        loss: The weighted alignment loss ``(b,)``, whose mean counts, with gradient; or a function that makes it from
            one of the tensors.
        pending: Its state.
    """
    found = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
    if not found:
        return None
    if not isinstance(loss, Tensor):
        loss = loss(found[0]).sum()
    witness = torch.zeros((), requires_grad=True)
    replaced: dict[int, Tensor] = {}
    places = [tensor.untyped_storage().data_ptr() for tensor in found]
    alone = [places.count(place) == 1 for place in places]
    size = len(found) if is_distributed() else 1
    for start in range(0, len(found), size):
        group = slice(start, start + size)
        args = (pending, alone[group])
        injected = GradientInjector.apply(args, witness, loss, *found[group])  # type: ignore[no-untyped-call]
        replaced.update(zip(map(id, found[group]), injected, strict=True))
    return map_tensors(output, lambda tensor: replaced.get(id(tensor), tensor))


_INJECTOR_NODE: Any = GradientInjector._backward_cls


def pending_losses(loss: Tensor, *, behind: bool = False) -> list[tuple[PendingLoss, Tensor]]:
    """The pending losses that ``loss`` was computed from, each with its tensor ``(b,)``.

    Args:
        loss: With gradient, of any shape ``(*)``.
        behind: Look behind injectors too, through whole policies, for a forward that was fed what an earlier one has
            returned.
    """
    found: dict[PendingLoss, Tensor] = {}
    seen: set[Any] = set()
    stack = [loss.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if isinstance(node, _INJECTOR_NODE):
                found[node.pending] = node.loss
            if behind or not isinstance(node, _INJECTOR_NODE):
                stack.extend(following for following, _ in node.next_functions)
    return list(found.items())
