"""Base of teachers whose features come from a frozen network with published weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from sfkit.component import AnyOptions
from sfkit.config import Options
from sfkit.errors import ConfigError, did_you_mean
from sfkit.notices import notice
from sfkit.rng import own_rng
from sfkit.teachers.order import check_view_order, view_order
from sfkit.teachers.pictures import ImageOptions, ImageTeacher
from sfkit.trunks.blocks import cast_products
from sfkit.trunks.hub import Source, locate
from sfkit.trunks.memory import weight_bytes
from sfkit.trunks.progress import progress
from sfkit.trunks.randomise import randomize
from sfkit.trunks.weights import load_weights, without_weights
from sfkit.types import Views


class NetworkOptions(ImageOptions):
    """Options that all teachers with a network have."""

    weights: str | None = Field(
        default=None, description="Local file or folder, or Hub repository, instead of the official weights."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch of the repository.")
    sha256: str | None = Field(default=None, description="Digest that the file of the weights must have.")
    config: str = Field(default="full", description="Size of the network; 'tiny' has random weights, for trying out.")
    view_order: tuple[str, ...] = Field(
        default=(), description="Cameras in the order in which the teacher sees them; the first is its reference view."
    )
    residual: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the residual stream.")


class NetworkTeacher(ImageTeacher):
    """Finds, loads and places published weights; subclasses give the network and its features.

    Class attributes:
        source: Where the official weights are.
        prefix: What stands before the trunk's keys in their file.
        ignored: Patterns of keys in the file that the trunk is known not to need.
        configs: Pydantic configuration of the trunk, for each value of the option ``config``.
        family: Name under which fixtures of the trunk are known to ``sfkit parity``; empty if there are none.
    """

    source: ClassVar[Source]
    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = ()
    configs: ClassVar[Mapping[str, Any]]
    family: ClassVar[str] = ""

    Options: ClassVar[type[Options]] = NetworkOptions
    options: NetworkOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        if self.options.config not in self.configs:
            raise ConfigError(
                f"Teacher {self.name!r} has no config {self.options.config!r}."
                f"{did_you_mean(self.options.config, self.configs)}",
                f"Configs: {', '.join(self.configs)}.",
            )
        self._check_side()

    # ------------------------------------------------------------------------------- what a family of networks defines

    @abstractmethod
    def build(self) -> nn.Module:
        """The trunk without weights (called on the meta device), with the checkpoint's keys."""

    # -------------------------------------------------------------------------------------------------------- settings

    @property
    def backbone_config(self) -> Any:
        """Configuration of the trunk."""
        return self.configs[self.options.config]

    @property
    def official(self) -> Source:
        """Where the official weights are; to be overridden where that depends on the options."""
        return self.source

    @property
    def not_needed(self) -> tuple[str, ...]:
        """Patterns of keys that the trunk does not need; to be overridden where that depends on the options."""
        return self.ignored

    @property
    def random(self) -> bool:
        """Whether the network has random weights: a tiny one that nobody gave weights to."""
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
            notice(f"teacher {self.name!r} has random weights (config=tiny): it shows the wiring and teaches nothing")
            with own_rng():
                backbone = randomize(self.build()).to(device)
            cast_products(backbone, product)
        else:
            backbone = self._meta_trunk(product)
            path = locate(self.official, self.options.weights, self.options.revision, self.options.sha256)
            with progress(f"loading {self.name}", weight_bytes(backbone)) as advance:
                prefix = self.prefix_in(path)
                load_weights(backbone, path, prefix=prefix, ignored=self.not_needed, device=device, advance=advance)
        if self.options.compile:
            self.compile(backbone)
        return backbone

    def prefix_in(self, path: Path) -> str:
        """What stands before the trunk's keys in this file, for families whose files differ."""
        return self.prefix

    def compile(self, backbone: nn.Module) -> None:
        """Compile what is worth it; the blocks, by default, which share one compiled program."""
        for stack in backbone.modules():
            if isinstance(stack, nn.ModuleList):
                for block in stack:
                    block.compile()

    def _meta_trunk(self, product: torch.dtype) -> nn.Module:
        with without_weights():
            backbone = self.build()
        cast_products(backbone, product)
        return backbone

    # -------------------------------------------------------------------------------------------------------- encoding

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        # Here, where all views of the policy are known: ``encode`` may be given the present ones only.
        if batch is not None:
            check_view_order(batch[0].names, self.options.view_order)

    def _order(self, names: Sequence[str]) -> Sequence[int]:
        return view_order(names, self.options.view_order)
