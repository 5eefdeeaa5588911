"""Base class of teachers that run a frozen network on images: sizes, padding, precision and memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.registry.component import Changeable, Harmless
from sfkit.teachers.base import Memory, Teacher
from sfkit.views.types import FeatureMap, Views
from sfkit_backbones.memory import weight_bytes
from sfkit_backbones.placement import Fit, Placement, Size, paint, place, read_back

_TOLERANCE = 1e-3


class ImageOptions(Options):
    """Options of all teachers that run a network on images."""

    size: int | None = Field(
        default=None, ge=1, le=2**14, description="Side in pixels of what the network sees; a multiple of its patch."
    )
    fit: Fit = Field(
        default="keep", description="How a view that is not square gets there: keep its aspect, pad, crop or stretch."
    )
    fill: float | None = Field(
        default=None, ge=0, le=1, description="Gray level of padding, also of the student's letterbox."
    )
    keep_letterbox: Harmless[bool] = Field(
        default=False, description="Show the student's letterbox to the teacher as it is."
    )
    antialias: Harmless[bool] = Field(
        default=True, description="Resize as Pillow does: the kernel widens when shrinking."
    )
    dtype: Changeable[Literal["auto", "float32", "bfloat16"]] = Field(
        default="auto", description="Of matrix products; auto: bfloat16 on a GPU that has it, else float32."
    )
    compile: Changeable[Harmless[bool]] = Field(default=False, description="Compile the blocks with torch.compile.")
    micro_batch: Changeable[int | None] = Field(default=None, ge=1, description="Samples at once, to bound memory.")


class ImageTeacher(Teacher):
    """Prepares images, bounds memory and maps features back to the student's views; subclasses load the weights.

    Attributes:
        patch: Side of a patch in pixels.
        default_size: Side of what the network sees, unless the option ``size`` says otherwise.
        default_fill: Gray level of padding.
    """

    patch: int
    default_size: int
    default_fill: float = 1.0

    Options: ClassVar[type[Options]] = ImageOptions
    options: ImageOptions
    _checked_range = False

    # ---------------------------------------------------------------------------------------- defined by each subclass

    @abstractmethod
    def features(self, backbone: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features of prepared images. Implementations stay on the images' device and do not synchronize with it.

        Args:
            backbone: The network from :meth:`load`.
            images: ``(b, v, 3, h, w)`` float32 in [0, 1], sides multiples of the patch, views in the teacher's order.
            layers: Requested layers, in any order.

        Returns:
            One ``(b, v, rows, columns, d)`` tensor for each layer, in any floating dtype. A grid of another size than
            that of the patches covers the whole canvas (such as 1 x 1 for one token per view).
        """

    def working_bytes(self, backbone: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        """Peak memory of :meth:`features` beside the weights, for ``(b, v, h, w)`` of prepared images."""
        return 0

    @abstractmethod
    def _meta_backbone(self, product: torch.dtype) -> nn.Module:
        """The network on the meta device, in its final dtypes; ``product`` is the dtype of matrix products."""

    def _order(self, names: Sequence[str]) -> Sequence[int]:
        """Indices of the views in the order in which the teacher sees them."""
        return range(len(names))

    # -------------------------------------------------------------------------------------------------------- settings

    @property
    def side(self) -> int:
        """Side in pixels of the network's input."""
        return self.options.size or self.default_size

    @property
    def fill(self) -> float:
        """Gray level of padding, in [0, 1]."""
        return self.default_fill if self.options.fill is None else self.options.fill

    def placement(self, view: Size) -> Placement:
        """Position and scale of a view of this size on the network's input."""
        return place(view, self.side, self.patch, self.options.fit)

    def _check_side(self) -> None:
        if self.side % self.patch:
            near = max(1, round(self.side / self.patch)) * self.patch
            raise ConfigError(
                f"Teacher {self.name!r} takes sizes that are multiples of {self.patch}, not {self.side}.",
                f"Set size={near}.",
            )

    # ---------------------------------------------------------------------------------------------------------- memory

    def _product_dtype(self, device: torch.device) -> torch.dtype:
        if self.options.dtype == "auto":
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if self.options.dtype == "bfloat16" else torch.float32

    def memory(self, views: tuple[int, int, int, int], layers: Sequence[int], device: torch.device) -> Memory:
        b, v, *size = views
        canvas = self.placement((size[0], size[1])).canvas
        backbone = self._meta_backbone(self._product_dtype(device))
        working = self.working_bytes(backbone, (min(b, self.options.micro_batch or b), v, *canvas), layers)
        return Memory(weight_bytes(backbone), working)

    @property
    def memory_advice(self) -> str:
        residual = "residual=bfloat16, " if "residual" in type(self.options).model_fields else ""
        return (
            f"Reduce it with the teacher's options micro_batch=1, dtype=bfloat16, {residual}"
            f"size={max(self.patch, self.side // 2 // self.patch * self.patch)} (now {self.side}) or an earlier layer."
        )

    # -------------------------------------------------------------------------------------------------------- encoding

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        self.check(views, layers)
        return self.feature_maps(model, views, layers)

    def feature_maps(self, model: nn.Module | None, views: Views, layers: Sequence[int]) -> list[FeatureMap]:
        """The output of :meth:`features` for these views, as one map over the whole views for each layer."""
        assert model is not None
        order = self._order(views.names)
        images = views.images
        if not self.options.keep_letterbox:
            images = torch.where(views.valid.unsqueeze(2), images, self.fill)
        images = _reordered(images, order)
        placement = self.placement(views.size)
        parts = [
            self.features(model, self.paint(part, placement), layers)
            for part in torch.split(images, self.options.micro_batch or len(images))
        ]
        back = sorted(range(len(order)), key=order.__getitem__)
        whole = [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)]
        return [read_back(_reordered(found, back), placement) for found in whole]

    def paint(self, images: Tensor, placement: Placement) -> Tensor:
        """Resize images ``(..., 3, h, w)`` in [0, 1] and place them on their canvas: ``(..., 3, *canvas)``."""
        return paint(images, placement, fill=self.fill, antialias=self.options.antialias)

    def check(self, views: Views, layers: Sequence[int]) -> None:
        """Check layers and views before encoding.

        Raises:
            ConfigError: A layer does not exist.
            ShapeError: A batch has no images.
            ViewsError: Pixels of the first batch are outside [0, 1].
        """
        unknown = [layer for layer in layers if not 1 <= layer <= self.num_layers]
        if unknown or not layers:
            raise ConfigError(
                f"Teacher {self.name!r} has no layer {', '.join(map(str, unknown)) or '(none was requested)'}.",
                f"Layers are 1 to {self.num_layers}.",
            )
        if 0 in views.images.shape:
            raise ShapeError(f"Teacher {self.name!r} was given views of shape {tuple(views.images.shape)}: nothing.")
        # The check waits for the device, so it runs on the first batch only.
        if not self._checked_range:
            self._checked_range = True
            self._check_range(views)

    def _check_range(self, views: Views) -> None:
        seen = torch.where(views.valid.unsqueeze(2), views.images, 0.0)
        low, high = float(seen.min()), float(seen.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ViewsError(
                f"Teacher {self.name!r} was given images from {low:.3g} to {high:.3g}, expected [0, 1].",
                "Undo the student's normalization first: the teacher applies its own. NaN means a broken image.",
            )


def _reordered(values: Tensor, order: Sequence[int]) -> Tensor:
    """Views ``(b, v, ...)`` in another order. Stacks, because indexing with a tensor waits for the device."""
    if list(order) == list(range(len(order))):
        return values
    return torch.stack([values[:, view] for view in order], 1)
