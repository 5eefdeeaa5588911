"""Findings of an inspection, and the adapter for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sfkit.errors import AdapterError
from sfkit.policies.generic import GenericAdapter
from sfkit.policies.generic.options import ImageTokens, MeanStd, Span

#: Keyword arguments of :class:`sfkit.GenericAdapter`, which validates their types.
AdapterArguments: TypeAlias = dict[str, Any]

#: Options that every generic adapter needs.
NEEDED = ("blocks", "tokens", "grid", "images", "pixels")


@dataclass(frozen=True)
class StackFinding:
    """A candidate for the decoder's blocks.

    Attributes:
        path: Path of the module that holds them.
        kind: Class name of the blocks.
        blocks: Number of blocks.
        parameters: Number of parameter values of all blocks.
        tap: Tapped module of each block: the name of a norm, ``"the block"``, or ``"nothing fires"``.
        fired: Number of blocks that ran in a training step.
        shape: Shape of the first block's input: ``(b, n, d)`` for decoder blocks.
        gradient: Largest norm of the action loss's gradient at a tap; None without a loss.
        reaches: Number of trainable parameter values that a gradient from its last tap reaches.
        sees: Whether the input of its first block depends on the images.
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
        student_layer: Number of blocks before it.
        path: The module whose input is tapped.
        fired: How often the module ran.
        gradient: Norm of the action loss's gradient at the tap; None without a loss.
        trained: Whether the gradient of the *visual tokens* reaches a trainable parameter; None if unknown.
    """

    student_layer: int
    path: str
    fired: int
    gradient: float | None
    trained: bool | None


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection.

    Attributes:
        policy: Class name of the policy.
        stacks: All candidates.
        taps: Taps of the chosen stack, by layer.
        options: The generic adapter's options that were found.
        hits: Share of the changed patches whose own token moved most; None where no token was found.
        notes: Findings that need the user's attention.
    """

    policy: str
    stacks: tuple[StackFinding, ...]
    taps: tuple[TapFinding, ...]
    options: AdapterArguments
    hits: float | None
    notes: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Required options of the adapter that were not found."""
        return tuple(name for name in NEEDED if self.options.get(name) is None)

    @property
    def adapter(self) -> GenericAdapter:
        """The adapter.

        Raises:
            AdapterError: A required option was not found.
        """
        if self.missing:
            raise AdapterError(
                f"The inspection has not found {', '.join(self.missing)}.", "Its notes say why; set them yourself."
            )
        return GenericAdapter(**self.options)

    def snippet(self) -> str:
        """Python code that wraps the policy; ``...`` marks options that were not found."""
        options = self.options or dict.fromkeys(NEEDED)
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


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _written(value: object) -> str:
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
