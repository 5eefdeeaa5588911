"""Small backbones, views and files, shared as fixtures: test folders are no packages here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sfkit_backbones.randomize import randomize
from sfkit_backbones.testing import random_views
from sfkit_depth_anything.backbone import DepthAnythingBackbone
from sfkit_depth_anything.config import TINY, DepthAnythingConfig
from torch import Tensor

from sfkit.views.types import Views

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def backbone_of() -> Callable[..., DepthAnythingBackbone]:
    """``backbone_of(config, seed)``: a backbone with random weights under which every part counts."""

    def make(config: DepthAnythingConfig = TINY, seed: int = 0) -> DepthAnythingBackbone:
        backbone = randomize(DepthAnythingBackbone(config), seed)
        assert isinstance(backbone, DepthAnythingBackbone)
        return backbone.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def views_of() -> Callable[..., Views]:
    return functools.partial(random_views, prefix="observation.images.")


@pytest.fixture
def checkpoint(
    tmp_path: Path, backbone_of: Callable[..., DepthAnythingBackbone]
) -> Callable[..., tuple[Path, DepthAnythingBackbone]]:
    """``checkpoint(prefix, change)``: a file as published, of a tiny backbone with its heads, and that backbone.

    ``change`` may alter the dict of tensors before it is written.
    """

    def make(
        prefix: str = "model.backbone.pretrained.",
        change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
        config: DepthAnythingConfig = TINY,
    ) -> tuple[Path, DepthAnythingBackbone]:
        backbone = backbone_of(config, 7)
        tensors = {prefix + name: value.clone() for name, value in backbone.state_dict().items()}
        root = prefix.removesuffix("backbone.pretrained.")
        for head in ("head.projects.0.weight", "cam_enc.trunk.0.norm1.bias", "cam_dec.fc_t.bias", "gs_head.norm.bias"):
            tensors[root + head] = torch.zeros(3)
        change(tensors)
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
        return path, backbone

    return make
