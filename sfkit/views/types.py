"""The two data types that student and teacher share: what the student sees, and a grid of features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sfkit.errors import ShapeError, shown

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect(name: str, value: object, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Check a tensor of a public data type.

    Args:
        name: In the error.
        value: A tensor, such as ``(b, v, h, w)``.
        shape: Its shape; a letter for an axis of any length but 0.
        dtypes: Those that it may have.

    Raises:
        ShapeError: It is none, or another one.
    """
    wanted = f"({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise ShapeError(f"{name} is {shown(value)}, expected a dense tensor {wanted}.")
    sides = itertools.zip_longest(value.shape, shape, fillvalue=-1)
    if not all(side == want or (isinstance(want, str) and side > 0) for side, want in sides):
        empty = ", with no side of 0" if 0 in value.shape else ""
        raise ShapeError(f"{name} has shape {tuple(value.shape)}, expected {wanted}{empty}.")
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ShapeError(f"{name} has dtype {value.dtype}, expected {names}.")


@dataclass(frozen=True)
class Views:
    """What the student sees, in a form that any teacher can use.

    Letters: ``b`` samples, ``v`` views, ``h``/``w`` pixels. Camera axes are OpenCV's (x right, y down, z forward) and
    integer pixel coordinates are pixel centers. Everything refers to the *view* (the image after the policy's own
    resize, crop and letterbox), not to the image in the dataset.

    Attributes:
        images: ``(b, v, 3, h, w)`` float in [0, 1]: the student's own pixels with its normalization undone.
        valid: ``(b, v, h, w)`` bool. A missing camera is all False; letterbox padding is False.
        names: One per view, in the policy's order.
        depth: ``(b, v, h, w)`` float32 metric z-depth in meters; 0 or NaN where unknown.
        intrinsics: ``(b, v, 3, 3)`` float32, in pixels of the view.
        world_from_camera: ``(b, v, 4, 4)`` float32 rigid transforms, meters.
        source_to_view: ``(b, v, 3, 3)`` float32: maps a homogeneous dataset pixel to the view's pixel.
        time: ``(b, v)`` float32 seconds relative to the current frame (time is folded into ``v``).
        keys: One identity per sample ("dataset@digest", episode, frame within it), for the feature store.
    """

    images: Tensor
    valid: Tensor
    names: tuple[str, ...]
    depth: Tensor | None = None
    intrinsics: Tensor | None = None
    world_from_camera: Tensor | None = None
    source_to_view: Tensor | None = None
    time: Tensor | None = None
    keys: tuple[tuple[str, int, int], ...] | None = None

    def __post_init__(self) -> None:
        expect("Views.images", self.images, ("b", "v", 3, "h", "w"), FLOATS)
        b, v, _, h, w = self.images.shape
        expect("Views.valid", self.valid, (b, v, h, w), (torch.bool,))
        for name, count in {"names": v, "keys": b}.items():
            given = getattr(self, name)
            if not (name == "keys" and given is None) and (not isinstance(given, (tuple, list)) or len(given) != count):
                raise ShapeError(
                    f"Views.{name} is {shown(given)}, expected {count} entries for {b} samples of {v} views."
                )
        matrices = {"intrinsics": (3, 3), "world_from_camera": (4, 4), "source_to_view": (3, 3)}
        for name, shape in {"depth": (h, w), "time": (), **matrices}.items():
            if getattr(self, name) is not None:
                expect(f"Views.{name}", getattr(self, name), (b, v, *shape), FLOATS)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a view in pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def present(self) -> Tensor:
        """``(b, v)`` bool: which views have any valid pixel."""
        return self.valid.flatten(2).any(-1)

    def select(self, samples: Tensor, views: Sequence[int]) -> Views:
        """Some samples (``(n,)`` long) and some views of every field."""
        columns = torch.as_tensor(list(views), device=self.images.device)

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        selected = {name: x.index_select(0, samples).index_select(1, columns) for name, x in tensors.items()}
        keys = None if self.keys is None else tuple(self.keys[i] for i in samples.tolist())
        return replace(self, names=tuple(self.names[i] for i in views), keys=keys, **selected)

    def token_mask(self, grid: tuple[int, int]) -> Tensor:
        """``(b, v, gh, gw)`` bool: a token is valid when all of its pixels are.

        Raises:
            ShapeError: The view does not divide into the grid.
        """
        (h, w), (gh, gw) = self.size, grid
        if min(gh, gw) < 1 or h % gh or w % gw:
            raise ShapeError(f"A view of {h}x{w} pixels does not divide into a grid of {gh}x{gw} tokens.")
        b, v = self.valid.shape[:2]
        return self.valid.view(b, v, gh, h // gh, gw, w // gw).all(5).all(3)


@dataclass(frozen=True)
class FeatureMap:
    """A grid of features for each view. The grid is in the shape, so that flat-token mistakes cannot be written.

    Attributes:
        values: ``(b, v, gh, gw, d)`` float, rows before columns.
        mask: ``(b, v, gh, gw)`` bool: which tokens may be used. Values where it is False carry no meaning (may be NaN).
    """

    values: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        expect("FeatureMap.values", self.values, ("b", "v", "gh", "gw", "d"), FLOATS)
        expect("FeatureMap.mask", self.mask, tuple(self.values.shape[:-1]), (torch.bool,))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[2], self.values.shape[3]

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.values.shape[-1]

    def sanitized(self) -> FeatureMap:
        """The map with masked values 0, by selection and not by product: NaN leaks into no value and no gradient."""
        return FeatureMap(torch.where(self.mask.unsqueeze(-1), self.values, 0.0), self.mask)
