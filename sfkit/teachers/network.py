"""Base of teachers whose features come from a frozen network with published weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.component import AnyOptions
from sfkit.config import Options
from sfkit.errors import ConfigError, ShapeError, ViewsError, did_you_mean
from sfkit.notices import notice
from sfkit.teachers.base import Teacher
from sfkit.teachers.order import check_view_order, view_order
from sfkit.trunks.blocks import cast_products
from sfkit.trunks.hub import Source, locate
from sfkit.trunks.memory import Memory, weight_bytes
from sfkit.trunks.placement import Fit, Placement, Size, paint, place, read_back
from sfkit.trunks.progress import progress
from sfkit.trunks.randomise import randomise
from sfkit.trunks.weights import load_weights, without_weights
from sfkit.types import FeatureMap, Views

_TOLERANCE = 1e-3


class NetworkOptions(Options):
    """Options that all teachers with a network have."""

    weights: str | None = Field(
        default=None, description="Local file or folder, or Hub repository, instead of the official weights."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of the repository.")
    sha256: str | None = Field(default=None, description="Digest that the file of the weights must have.")
    config: str = Field(default="full", description="Size of the network; 'tiny' has random weights, for trying out.")
    size: int | None = Field(
        default=None, ge=1, description="Side in pixels of what the network sees; a multiple of its patch."
    )
    fit: Fit = Field(
        default="keep", description="How a view that is not square gets there: keep its aspect, pad, crop or stretch."
    )
    fill: float | None = Field(
        default=None, ge=0, le=1, description="Grey level of padding, also of the student's letterbox."
    )
    keep_letterbox: bool = Field(default=False, description="Show the student's letterbox to the teacher as it is.")
    antialias: bool = Field(default=True, description="Resize as Pillow does: the kernel widens when shrinking.")
    view_order: tuple[str, ...] = Field(
        default=(), description="Cameras in the order in which the teacher sees them; the first is its reference view."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of matrix products; auto: bfloat16 on a GPU that has it, else float32."
    )
    residual: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the residual stream.")
    compile: bool = Field(default=False, description="Compile the blocks with torch.compile.")
    micro_batch: int | None = Field(default=None, ge=1, description="Samples at once, to bound memory.")


class NetworkTeacher(Teacher):
    """Prepares pictures, loads and places weights, and bounds memory; subclasses give the network and its features.

    Class attributes:
        source: Where the official weights are.
        prefix: What stands before the trunk's keys in their file.
        ignored: Patterns of keys in the file that the trunk is known not to need.
        configs: Pydantic configuration of the trunk, for each value of the option ``config``.
        patch: Side of a patch in pixels.
        default_size: Side of what the network sees, unless the option ``size`` says otherwise.
        default_fill: Grey level of padding.
        family: Name under which fixtures of the trunk are known to ``sfkit parity``; empty if there are none.
    """

    source: ClassVar[Source]
    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()
    configs: ClassVar[Mapping[str, Any]]
    patch: ClassVar[int]
    default_size: ClassVar[int]
    default_fill: ClassVar[float] = 1.0
    family: ClassVar[str] = ""

    Options: ClassVar[type[Options]] = NetworkOptions
    options: NetworkOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        self._looked_at_range = False
        if self.options.config not in self.configs:
            raise ConfigError(
                f"Teacher {self.name!r} has no config {self.options.config!r}."
                f"{did_you_mean(self.options.config, self.configs)}",
                f"Configs: {', '.join(self.configs)}.",
            )
        if self.side % self.patch:
            near = max(1, round(self.side / self.patch)) * self.patch
            raise ConfigError(
                f"Teacher {self.name!r} takes sizes that are multiples of {self.patch}, not {self.side}.",
                f"Set size={near}.",
            )

    # ------------------------------------------------------------------------------- what a family of networks defines

    @abstractmethod
    def build(self) -> nn.Module:
        """The trunk without weights (called on the meta device), with the checkpoint's keys."""

    @abstractmethod
    def features(self, trunk: nn.Module, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features of prepared pictures, on no more than their own device and without a synchronisation.

        Args:
            trunk: What :meth:`build` gave, with weights.
            images: ``(b, v, 3, h, w)`` float32 in [0, 1], sides multiples of the patch, views in the teacher's order.
            layers: Layers wanted, in any order.

        Returns:
            For each layer ``(b, v, rows, columns, d)``, in any floating dtype. A grid that is not that of the patches
            (such as 1 x 1 for a token that speaks for a whole view) is taken to cover the whole canvas.
        """

    def working_bytes(self, trunk: nn.Module, shape: tuple[int, int, int, int], layers: Sequence[int]) -> int:
        """Peak memory of :meth:`features` beside the weights, for ``(b, v, h, w)`` of prepared pictures."""
        return 0

    # -------------------------------------------------------------------------------------------------------- settings

    @property
    def trunk_config(self) -> Any:
        """Configuration of the trunk."""
        return self.configs[self.options.config]

    @property
    def side(self) -> int:
        """Side of what the network sees."""
        return self.options.size or self.default_size

    @property
    def fill(self) -> float:
        """Grey level of padding."""
        return self.default_fill if self.options.fill is None else self.options.fill

    @property
    def random(self) -> bool:
        """Whether the network has random weights: a tiny one that nobody gave weights to."""
        return self.options.config == "tiny" and self.options.weights is None

    @property
    def identity(self) -> dict[str, str]:
        if self.random:
            return {**super().identity, "license": "none (random weights)", "weights": "random"}
        where = self.options.weights or self.source.repo
        revision = self.options.revision or (self.source.revision if self.options.weights is None else None)
        return {**super().identity, "weights": f"{where}@{revision}" if revision else where}

    @property
    def noncommercial(self) -> bool:
        return not self.random and super().noncommercial

    def placement(self, view: Size) -> Placement:
        """Where a view of this size lies on what the network sees."""
        return place(view, self.side, self.patch, self.options.fit)

    # --------------------------------------------------------------------------------------------------------- loading

    def load(self, device: torch.device) -> nn.Module:
        product = self._product_dtype(device)
        if self.random:
            notice(f"teacher {self.name!r} has random weights (config=tiny): it shows the wiring and teaches nothing")
            trunk = randomise(self.build()).to(device)
            cast_products(trunk, product)
        else:
            trunk = self._meta_trunk(product)
            path = locate(self.source, self.options.weights, self.options.revision, self.options.sha256)
            with progress(f"loading {self.name}", weight_bytes(trunk)) as advance:
                load_weights(trunk, path, prefix=self.prefix, ignored=self.ignored, device=device, advance=advance)
        if self.options.compile:
            self.compile(trunk)
        return trunk

    def compile(self, trunk: nn.Module) -> None:
        """Compile what is worth it; the blocks, by default, which share one compiled program."""
        for stack in trunk.modules():
            if isinstance(stack, nn.ModuleList):
                for block in stack:
                    block.compile()

    def _meta_trunk(self, product: torch.dtype) -> nn.Module:
        with without_weights():
            trunk = self.build()
        cast_products(trunk, product)
        return trunk

    def _product_dtype(self, device: torch.device) -> torch.dtype:
        if self.options.dtype == "auto":
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if self.options.dtype == "bfloat16" else torch.float32

    def memory(self, views: tuple[int, int, int, int], layers: Sequence[int], device: torch.device) -> Memory:
        b, v, *size = views
        canvas = self.placement((size[0], size[1])).canvas
        trunk = self._meta_trunk(self._product_dtype(device))
        working = self.working_bytes(trunk, (min(b, self.options.micro_batch or b), v, *canvas), layers)
        return Memory(weight_bytes(trunk), working)

    @property
    def memory_advice(self) -> str:
        return (
            "Reduce it with the teacher's options micro_batch=1, dtype=bfloat16, residual=bfloat16, "
            f"size={max(self.patch, self.side // 2 // self.patch * self.patch)} (now {self.side}) or an earlier layer."
        )

    # -------------------------------------------------------------------------------------------------------- encoding

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        # Here, where all views of the policy are known: ``encode`` may be given the present ones only.
        if batch is not None:
            check_view_order(batch[0].names, self.options.view_order)

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        assert model is not None
        self._check(views, layers)
        order = view_order(views.names, self.options.view_order)
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
        return [
            read_back(_reordered(torch.cat(pieces) if len(pieces) > 1 else pieces[0], back), placement, self.patch)
            for pieces in zip(*parts, strict=True)
        ]

    def paint(self, images: Tensor, placement: Placement) -> Tensor:
        """Resize pictures in [0, 1] and put them on their canvas."""
        return paint(images, placement, fill=self.fill, antialias=self.options.antialias)

    def _check(self, views: Views, layers: Sequence[int]) -> None:
        unknown = [layer for layer in layers if not 1 <= layer <= self.num_layers]
        if unknown or not layers:
            raise ConfigError(
                f"Teacher {self.name!r} has no layer {', '.join(map(str, unknown)) or '(none was asked for)'}.",
                f"Layers are 1 to {self.num_layers}.",
            )
        if 0 in views.images.shape:
            raise ShapeError(f"Teacher {self.name!r} was given views of shape {tuple(views.images.shape)}: nothing.")
        if not self._looked_at_range:  # looking waits for the device, so only the first batch is looked at
            self._looked_at_range = True
            self._check_range(views)

    def _check_range(self, views: Views) -> None:
        seen = torch.where(views.valid.unsqueeze(2), views.images, 0.0)
        low, high = float(seen.min()), float(seen.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ViewsError(
                f"Teacher {self.name!r} was given pictures from {low:.3g} to {high:.3g}, expected [0, 1].",
                "Undo the student's normalisation first: the teacher applies its own. NaN means a broken picture.",
            )


def _reordered(values: Tensor, order: Sequence[int]) -> Tensor:
    """Views ``(b, v, ...)`` in another order; by stacking, since an index tensor would have to wait for the device."""
    if list(order) == list(range(len(order))):
        return values
    return torch.stack([values[:, view] for view in order], 1)
