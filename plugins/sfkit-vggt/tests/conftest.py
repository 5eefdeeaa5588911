"""The tiny backbone and what the tests share (as fixtures: test folders are no packages here)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sfkit_backbones.randomize import randomize
from sfkit_backbones.testing import random_views
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import TINY
from torch import nn

from sfkit.testing.tiny import TinyAdapter, TinyPolicy
from sfkit.views.types import Views

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[4] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and fixtures beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no folder of shared fixtures beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def new_backbone() -> Callable[..., Aggregator]:
    """``new_backbone(**settings)``: the tiny backbone, always with the same weights."""

    def new(**settings: Any) -> Aggregator:
        with torch.inference_mode(False):  # as teachers are loaded
            backbone = randomize(Aggregator(TINY, **settings)).eval().requires_grad_(False)
        assert isinstance(backbone, Aggregator)
        return backbone

    return new


@pytest.fixture(scope="session")
def backbone(new_backbone: Callable[..., Aggregator]) -> Aggregator:
    return new_backbone()


@pytest.fixture(scope="session")
def make_views() -> Callable[..., Views]:
    return random_views


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, backbone: Aggregator) -> Path:
    """A file with the tiny backbone's weights under the official keys, and heads beside them."""
    state = {f"aggregator.{key}": value for key, value in backbone.state_dict().items()}
    heads = {f"{head}_head.layers.0.weight": torch.zeros(3) for head in ("camera", "point", "depth", "track")}
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({**state, **heads}, path)
    return path


@pytest.fixture
def tiny_policy() -> Callable[..., nn.Module]:
    """``tiny_policy(teacher, **settings)``: a policy wrapped with a teacher, always with the same weights."""
    from sfkit import SpatialForcing

    def build(teacher: Any, **settings: Any) -> nn.Module:
        torch.manual_seed(0)
        policy = TinyPolicy()
        return SpatialForcing.wrap(policy, teacher, adapter=TinyAdapter(policy), **settings)

    return build
