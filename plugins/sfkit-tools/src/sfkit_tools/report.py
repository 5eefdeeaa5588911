"""What an inspection has found, and the adapter that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfkit.errors import AdapterError
from sfkit.policies.generic import GenericAdapter
from sfkit.policies.generic.options import ImageTokens, MeanStd, Span

_NEEDED = ("blocks", "tokens", "grid", "images", "pixels")


@dataclass(frozen=True)
class StackFinding:
    """A candidate for the decoder's blocks.

    Attributes:
        path: Of the module that holds them.
        kind: Their class.
        blocks: How many.
        parameters: Of all of them.
        tap: What is tapped within each: the name of a norm, ``"the block"``, or ``"nothing fires"``.
        fired: How many of the blocks fired in a training step.
        shape: Of what the first one was given: ``(b, n, d)`` for decoder blocks.
        gradient: Norm of the action loss's gradient at the tap that it is strongest at; None without a loss.
        reaches: Trainable parameters that a gradient from its last tap could reach.
        sees: Whether its first block is given something else when the images change.
    """

    path: str
    kind: str
    blocks: int
    parameters: int
    tap: str
    fired: int
    shape: tuple[int, ...]
    gradient: float | None
    reaches: int
    sees: bool


@dataclass(frozen=True)
class TapFinding:
    """A layer of the chosen stack.

    Attributes:
        student_layer: Blocks before it.
        path: The module whose input is tapped.
        fired: How often it fired.
        gradient: Norm of the action loss's gradient there; None without a loss.
        trained: Whether the gradient of the *visual tokens* there reaches a trainable parameter; None if not known.
    """

    student_layer: int
    path: str
    fired: int
    gradient: float | None
    trained: bool | None


@dataclass(frozen=True)
class Inspection:
    """What must be told of a policy.

    Attributes:
        policy: Its class.
        stacks: All candidates.
        taps: Of the chosen one, by layer.
        options: Of the generic adapter, as far as they were found.
        hits: Share of the changed patches whose own token moved most; None where no token was found.
        notes: What to look at again.
    """

    policy: str
    stacks: tuple[StackFinding, ...]
    taps: tuple[TapFinding, ...]
    options: Mapping[str, Any]
    hits: float | None
    notes: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Options that the adapter needs and that were not found."""
        return tuple(name for name in _NEEDED if self.options.get(name) is None)

    @property
    def adapter(self) -> GenericAdapter:
        """The adapter.

        Raises:
            AdapterError: Something that it needs was not found.
        """
        if self.missing:
            raise AdapterError(
                f"The inspection has not found {', '.join(self.missing)}.", "Its notes say why; tell it yourself."
            )
        return GenericAdapter(**self.options)

    def snippet(self) -> str:
        """Python that wraps the policy; what was not found is marked."""
        options = self.options or dict.fromkeys(_NEEDED)
        lines = [f"    {name}={_written(value)}," for name, value in options.items()]
        used = {type(each).__name__ for value in options.values() for each in _parts(value)}
        names = [*(used & {"ImageTokens", "Span"}), "GenericAdapter", "SpatialForcing"]
        return "\n".join(
            [
                f"from sfkit import {', '.join(sorted(names))}",
                *(["from sfkit.policies.generic import MeanStd"] if "MeanStd" in used else []),
                "",
                "adapter = GenericAdapter(",
                *lines,
                ")",
                'policy = SpatialForcing.wrap(policy, teacher="vggt", adapter=adapter)',
            ]
        )


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _written(value: Any) -> str:
    if value is None:
        return "..."
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Span):
        return f"Span({value.start}, {value.length})"
    if isinstance(value, ImageTokens):
        return f"ImageTokens({value.id})" if value.where == "input_ids" else f'ImageTokens({value.id}, "{value.where}")'
    if isinstance(value, MeanStd):
        return f"MeanStd(mean={value.mean}, std={value.std})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
