"""Options of the generic adapter. A checkpoint holds all of them but functions, and a resumed run reads them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, model_validator
from typing_extensions import Self

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.registry.component import Harmless

_FUNCTION = "function"

Layout = Literal["b v c h w", "b v h w c", "b c h w", "b h w c", "b (v c) h w", "(b v) c h w", "(v b) c h w", "patches"]
Colors = tuple[float, float, float]


def _name_of(function: Callable[..., object]) -> dict[str, str]:
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", type(function).__name__)
    return {_FUNCTION: f"{module}:{name}"}


#: A function as an option. Its name alone is saved: a checkpoint must not decide what code runs.
Function = Annotated[Callable[[Any], Any], PlainSerializer(_name_of, return_type=dict[str, str])]
#: Where something is in the arguments of the policy's forward: one path, one for each view, or a function of the call.
Where = str | tuple[str, ...] | Function
#: Of a grid, a picture or a layer.
Side = Annotated[int, Field(ge=1, le=2**16)]
#: Paths by the number of steps ahead.
Paths = dict[int, str | tuple[str, ...]]


@dataclass(frozen=True)
class Span:
    """``length`` positions of the tapped sequence from ``start`` on; a negative start counts from the end."""

    start: int
    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"Span({self.start}, {self.length}) is empty.", "Write Span(start, length).")
        if self.start < 0 < self.start + self.length:
            raise ConfigError(f"Span({self.start}, {self.length}) leads beyond the end of the sequence.")


@dataclass(frozen=True)
class ImageTokens:
    """The positions at which an integer tensor of the batch holds the image token, wherever padding has put them.

    Attributes:
        id: The image token.
        where: Path of the token ids ``(b, n)``.
    """

    id: int
    where: str = "input_ids"


@dataclass(frozen=True)
class MeanStd:
    """Images are normalized as ``(x - mean) / std``, with x in [0, 1]."""

    mean: Colors
    std: Colors

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ConfigError(f"MeanStd.std is {self.std}; it must be positive.")


class GenericOptions(Options):
    """Options of :class:`sfkit.GenericAdapter`.

    A function gets the :class:`sfkit.policies.base.ForwardCall` (``blocks``: the policy).
    """

    blocks: Harmless[str | tuple[str, ...] | Function] = Field(description="Path of the decoder blocks, or of each.")
    norm: Harmless[str | None] = Field(default=None, description="Path in a block of its first norm; '': the block.")
    final_norm: Harmless[str | None] = Field(default=None, description="Path of the norm after the last block.")
    dim: int | None = Field(
        default=None, ge=1, le=2**16, description="Width of the hidden states; by default the norm's."
    )
    tokens: Harmless[Span | tuple[Span, ...] | ImageTokens | Function] = Field(
        description="Visual tokens in the tapped sequence, view by view and row by row; a function returns positions."
    )
    grid: tuple[Side, Side, Side] = Field(description="Views, rows and columns of visual tokens.")
    images: Harmless[Where] = Field(description="The images that the policy gets.")
    layout: Layout | None = Field(default=None, description="Axes of the images, where their shape is ambiguous.")
    channels: tuple[int, int, int] | None = Field(default=None, description="Red, green and blue, of more than three.")
    pixels: Harmless[Literal["[0,1]", "[-1,1]", "0-255", "imagenet", "clip"] | MeanStd | None] = Field(
        default=None, description="How the images are normalized when they reach the policy; checked, never guessed."
    )
    resize: tuple[Side, Side] | None = Field(
        default=None, description="Height and width after the policy's own resize."
    )
    merge: int = Field(
        default=2, ge=1, le=64, description="Layout 'patches': patches along each side of a visual token."
    )
    frames: int = Field(default=2, ge=1, le=64, description="Layout 'patches': copies of a still image in time.")
    names: Harmless[tuple[str, ...]] = Field(default=(), description="A name for each view.")
    present: Harmless[Where | None] = Field(default=None, description="Cameras that exist: bool (b, v), or (b,) each.")
    valid: Harmless[Where | tuple[int, int, int, int] | None] = Field(
        default=None, description="Pixels without padding: bool (b, v, h, w), or the box (top, left, height, width)."
    )
    depth: Harmless[Where | None] = Field(default=None, description="Depth maps (b, v, h, w) at the view's resolution.")
    depth_unit: Literal["m", "mm"] | None = Field(default=None, description="Their unit; never guessed.")
    intrinsics: Harmless[Where | None] = Field(default=None, description="K (b, v, 3, 3) in pixels of the view.")
    world_from_camera: Harmless[Where | None] = Field(default=None, description="Poses (b, v, 4, 4), meters.")
    connector: Harmless[str | None] = Field(default=None, description="Path of the module behind the vision tower.")
    tower: tuple[Side, Side, Side] | None = Field(
        default=None, description="Rows, columns, width of the tower's tokens."
    )
    future: Harmless[Paths] = Field(default={}, description="Images of future frames, by the number of steps ahead.")
    future_present: Harmless[Paths] = Field(default={}, description="Views that have them: bool (b, v), or (b,) each.")
    loss: Harmless[str | None] = Field(
        default=None,
        description="Path of the loss in the output; 'output': all of it; 'outside': in the training loop.",
    )

    @property
    def spans(self) -> tuple[Span, ...]:
        """The visual tokens as spans; empty where the batch decides."""
        tokens = (self.tokens,) if isinstance(self.tokens, Span) else self.tokens
        return tokens if isinstance(tokens, tuple) else ()

    @model_validator(mode="before")
    @classmethod
    def _functions_are_not_saved(cls, values: dict[str, object]) -> dict[str, object]:
        lost = [
            f"{key} was {item[_FUNCTION]}"
            for key, item in values.items()
            if isinstance(item, dict) and _FUNCTION in item
        ]
        if lost:
            raise ConfigError(
                f"The saved run used functions in its GenericAdapter, and functions are not saved: {', '.join(lost)}.",
                "Pass adapter=GenericAdapter(...) with them to SpatialForcing.from_pretrained.",
            )
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        views, rows, columns = self.grid
        length, count = sum(span.length for span in self.spans), views * rows * columns
        if self.spans and length != count:
            raise ConfigError(
                f"tokens hold {length} positions, but {views} views of {rows}x{columns} tokens are {count}.",
                "Write Span(start, length), and grid=(views, rows, columns).",
            )
        _refuse_overlap(self.spans)
        for option in ("names", "images", "present", "depth", "intrinsics", "world_from_camera"):
            given = getattr(self, option)
            if isinstance(given, tuple) and given and len(given) != views:
                raise ConfigError(f"{option} has {len(given)} entries for {views} views.", "Give one for each view.")
        if (self.connector is None) is not (self.tower is None):
            raise ConfigError("connector and tower belong together.", "Give tower=(rows, columns, width), or neither.")
        if self.future_present.keys() - self.future.keys():
            raise ConfigError("future_present names steps that future does not.", "Give both the same steps.")
        if self.depth is not None and self.depth_unit is None:
            raise ConfigError("The unit of the depth maps is not given.", 'Add depth_unit="m" or "mm".')
        return self


def _refuse_overlap(spans: tuple[Span, ...]) -> None:
    # Spans that count from the end are compared among themselves: the length of the sequence is not known.
    for from_end in (True, False):
        ordered = sorted((span for span in spans if (span.start < 0) is from_end), key=lambda span: span.start)
        for first, second in itertools.pairwise(ordered):
            if first.start + first.length > second.start:
                raise ConfigError(f"{first} and {second} overlap.", "Each visual token has one position.")
