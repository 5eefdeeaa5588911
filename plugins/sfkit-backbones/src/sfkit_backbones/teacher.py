"""Base class of teachers whose features come from a frozen network with published weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from sfkit.config import Options
from sfkit.errors import ConfigError, did_you_mean, log_info
from sfkit.registry.component import AnyOptions, Changeable, Harmless, Reaching
from sfkit.utils.runtime import own_rng
from sfkit.views.types import Views
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.hub import Source, locate
from sfkit_backbones.image_teacher import ImageOptions, ImageTeacher
from sfkit_backbones.memory import weight_bytes
from sfkit_backbones.progress import progress
from sfkit_backbones.randomize import randomize
from sfkit_backbones.view_order import check_view_order, view_order
from sfkit_backbones.weights import load_weights, without_weights


class BackboneOptions(ImageOptions):
    """Options of all teachers with a network."""

    weights: Reaching[str | None] = Field(
        default=None, description="Local file or folder, or Hub repository, instead of the official weights."
    )
    revision: Reaching[str | None] = Field(default=None, description="Commit, tag or branch of the repository.")
    sha256: Changeable[Harmless[str | None]] = Field(
        default=None, description="Digest that the file of the weights must have."
    )
    config: Harmless[str] = Field(
        default="full", description="Size of the network; 'tiny' has random weights, for trying out."
    )
    view_order: Harmless[tuple[str, ...]] = Field(
        default=(), description="Cameras in the order in which the teacher sees them; the first is its reference view."
    )
    residual: Changeable[Literal["float32", "bfloat16"]] = Field(
        default="float32", description="Of the residual stream."
    )


class BackboneTeacher(ImageTeacher):
    """Finds and loads published weights; subclasses define the network and its features.

    Class attributes:
        source: Location of the official weights.
        prefix: Prefix of the backbone's keys in their file.
        ignored: Patterns of keys in the file that the backbone does not need.
        configs: Configuration of the backbone, for each value of the option ``config``.
        family: Name of the backbone's fixtures for ``sfkit parity``; empty without fixtures.
    """

    source: ClassVar[Source]
    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()
    configs: ClassVar[Mapping[str, Options]]
    family: ClassVar[str] = ""

    Options: ClassVar[type[Options]] = BackboneOptions
    options: BackboneOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        if self.options.config not in self.configs:
            raise ConfigError(
                f"Teacher {self.name!r} has no config {self.options.config!r}."
                f"{did_you_mean(self.options.config, self.configs)}",
                f"Configs: {', '.join(self.configs)}.",
            )
        self._check_side()

    # ---------------------------------------------------------------------------------------- defined by each subclass

    @abstractmethod
    def build(self) -> nn.Module:
        """The backbone with the checkpoint's keys. It runs on the meta device, so it must not read values."""

    # -------------------------------------------------------------------------------------------------------- settings

    @property
    def backbone_config(self) -> Any:
        """Configuration of the backbone."""
        return self.configs[self.options.config]

    @property
    def official(self) -> Source:
        """Location of the official weights. Subclasses override it where it depends on the options."""
        return self.source

    @property
    def not_needed(self) -> tuple[str, ...]:
        """Patterns of keys that the backbone does not need. Subclasses override it where it depends on the options."""
        return self.ignored

    @property
    def random(self) -> bool:
        """Whether the network has random weights: ``config="tiny"`` without ``weights``."""
        return self.options.config == "tiny" and self.options.weights is None

    @property
    def identity(self) -> dict[str, str]:
        if self.random:
            return {**super().identity, "license": "none (random weights)", "weights": "random"}
        where = self.options.weights or self.official.repo
        revision = self.options.revision or (self.official.revision if self.options.weights is None else None)
        return {**super().identity, "weights": f"{where}@{revision}" if revision else where}

    @property
    def noncommercial(self) -> bool:
        return not self.random and super().noncommercial

    # --------------------------------------------------------------------------------------------------------- loading

    def load(self, device: torch.device) -> nn.Module:
        product = self._product_dtype(device)
        if self.random:
            log_info(f"teacher {self.name!r} has random weights (config=tiny): it shows the wiring and teaches nothing")
            with own_rng():
                backbone = randomize(self.build()).to(device)
            cast_products(backbone, product)
        else:
            backbone = self._meta_backbone(product)
            path = locate(self.official, self.options.weights, self.options.revision, self.options.sha256)
            with progress(f"loading {self.name}", weight_bytes(backbone)) as advance:
                prefix = self.prefix_in(path)
                load_weights(backbone, path, prefix=prefix, ignored=self.not_needed, device=device, advance=advance)
        if self.options.compile:
            self.compile(backbone)
        return backbone

    def prefix_in(self, path: Path) -> str:
        """Prefix of the backbone's keys in this file. Subclasses override it where files differ."""
        return self.prefix

    def compile(self, backbone: nn.Module) -> None:
        """Compile each block; blocks of one class share one compiled program."""
        for stack in backbone.modules():
            if isinstance(stack, nn.ModuleList):
                for block in stack:
                    block.compile()

    def _meta_backbone(self, product: torch.dtype) -> nn.Module:
        with without_weights():
            backbone = self.build()
        cast_products(backbone, product)
        return backbone

    # -------------------------------------------------------------------------------------------------------- encoding

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        # ``encode`` may get the present views only, so the names are checked here, where all views are known.
        if batch is not None:
            check_view_order(batch[0].names, self.options.view_order)

    def _order(self, names: Sequence[str]) -> Sequence[int]:
        return view_order(names, self.options.view_order)
