"""Teachers without weights, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import nn

from sfkit.config import Options
from sfkit.registry.marks import Harmless
from sfkit.teachers.base import Teacher
from sfkit.views.types import FeatureMap, Views


class PatchTeacherOptions(Options):
    """Options of :class:`PatchTeacher`."""

    dim: int = Field(default=12, ge=1, description="Feature width.")
    grid: int | None = Field(default=None, ge=1, description="Side of its own grid; the student's by default.")
    joint: Harmless[bool] = Field(default=False, description="Mix views, as a joint multi-view teacher does.")


class PatchTeacher(Teacher):
    """A frozen random linear map of pooled patches; with ``joint``, plus the mean over the views of a sample.

    Queries and keys of a block, of two heads, are its features.
    """

    name = "patch"
    license = "Apache-2.0"
    Options: ClassVar[type[Options]] = PatchTeacherOptions
    options: PatchTeacherOptions

    @property
    def num_layers(self) -> int:
        return 3

    def dim(self, layer: int) -> int:
        return self.options.dim

    def load(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)  # global on purpose: the core must guard the caller's random state
        return nn.Linear(3, self.options.dim)

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        assert model is not None
        own = (self.options.grid, self.options.grid) if self.options.grid else grid
        b, v = views.images.shape[:2]
        pooled = F.adaptive_avg_pool2d(views.images.flatten(0, 1), own).permute(0, 2, 3, 1)
        values = model(pooled).reshape(b, v, *own, -1)
        if self.options.joint:
            values = values + values.mean(1, keepdim=True)
        mask = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
        return [FeatureMap(values * layer, mask) for layer in layers]

    def attention_heads(self, block: int) -> tuple[int, int]:
        return 2, self.options.dim // 2

    def encode_with_attention(
        self,
        model: nn.Module | None,
        views: Views,
        layers: Sequence[int],
        blocks: Sequence[int],
        grid: tuple[int, int],
    ) -> list[FeatureMap]:
        maps = self.encode(model, views, [*layers, *blocks], grid)
        doubled = [FeatureMap(torch.cat([one.values, one.values], -1), one.mask) for one in maps[len(layers) :]]
        return [*maps[: len(layers)], *doubled]
