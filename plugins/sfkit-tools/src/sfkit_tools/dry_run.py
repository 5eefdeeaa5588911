"""One training step of a policy without an optimizer: which taps run, where the loss is, and gradients at the taps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from sfkit.policies.base import find_loss
from sfkit_tools.blocks import Candidate, Firings, listening
from sfkit_tools.calls import Call
from sfkit_tools.capture import trainable_values

_DEEPEST = 3


@dataclass
class DryStep:
    """Findings of a training step.

    Attributes:
        output: Output of forward.
        log: Inputs of the candidates' modules.
        loss: The loss, if forward returned one; of any shape.
        where: The adapter's option ``loss``; None where it finds the loss by itself.
        gradients: Norm of the gradient of the loss at each tapped module's input.
        remarks: Notes on the loss for the user.
    """

    output: object
    log: Firings
    loss: Tensor | None = None
    where: str | None = None
    gradients: dict[nn.Module, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def reaches(self, module: nn.Module) -> int:
        """Number of trainable parameter values that a gradient at this module's input reaches."""
        state = self.log.first(module)
        return 0 if state is None or not state.requires_grad else trainable_values(state)


def dry_step(model: nn.Module, call: Call, candidates: Sequence[Candidate]) -> DryStep:
    """Run forward and, if it returns a loss, backward. The graph is kept, and no parameter changes."""
    modules = itertools.chain.from_iterable(candidate.tappable() for candidate in candidates)
    with listening(modules) as log:
        output = call.run(model)
    step = DryStep(output, log)
    for candidate in candidates:
        candidate.choose_taps(log)
    _find(step)
    if step.loss is not None and step.loss.requires_grad:
        _backward(step, [tap for candidate in candidates for tap in candidate.taps if tap is not None])
    return step


def _backward(step: DryStep, taps: Sequence[tuple[nn.Module, str]]) -> None:
    handles = []
    for module, _ in taps:
        state = step.log.first(module)
        if state is not None and state.requires_grad:
            handles.append(state.register_hook(_norm_into(step.gradients, module)))  # type: ignore[no-untyped-call]
    assert step.loss is not None
    try:
        step.loss.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        step.remarks.append(f"Its backward failed, so gradients were not measured: {error}")
    finally:
        for handle in handles:
            handle.remove()


def _norm_into(gradients: dict[nn.Module, float], module: nn.Module) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        """Store the norm of a gradient ``(b, n, d)``."""
        gradients[module] = float(gradient.float().norm())

    return hook


def _find(step: DryStep) -> None:
    """Find the loss in forward's output as the generic adapter does, else any scalar with a gradient in it."""
    loss = find_loss(step.output)
    predictions = loss is not None and loss.ndim > 1 and not isinstance(step.output, Mapping)
    if loss is not None and loss.is_floating_point() and loss.requires_grad and not predictions:
        step.loss = loss
        return
    if predictions and loss is not None and loss.requires_grad and bool((loss >= 0).all()):
        step.loss, step.where = loss, "output"
        step.remarks.append(
            f"forward returned a tensor {tuple(loss.shape)} without a negative element: loss='output' treats it as a "
            "loss of each element. If it holds predictions, set loss='outside'."
        )
        return
    others = dict(_scalars(step.output, "", _DEEPEST))
    if others:
        step.where = min(others, key=lambda path: ("total" not in path, "loss" not in path, path.count(".")))
        step.loss = others[step.where]
        if len(others) > 1:
            step.remarks.append(f"forward returned several scalars with a gradient: {', '.join(others)}.")
        return
    step.where = "outside"
    what = f"a tensor {tuple(loss.shape)}, not a loss" if predictions and loss is not None else "no loss"
    step.remarks.append(
        f"forward returned {what}: loss='outside' says that the training loop computes it. If forward "
        "needs targets to return one, put them into the batch."
    )


def _scalars(value: object, path: str, levels: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.ndim == 0 and value.requires_grad and path:
            yield path, value
        return
    if not levels:
        return
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list | tuple):
        children = [(str(index), child) for index, child in enumerate(value)]
    else:
        children = list(vars(value).items()) if hasattr(value, "__dict__") else []
    for key, child in children:
        yield from _scalars(child, f"{path}.{key}" if path else key, levels - 1)
