"""Published files: read strictly, from the known places in them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sfkit_depth_anything.config import TINY_GATED
from sfkit_depth_anything.teachers import DA3Base, DA3Giant, DA3Large, DA3Small
from sfkit_depth_anything.weights import PREFIXES, find_prefix

from sfkit.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_backbone_is_found_where_it_is(checkpoint: Callable[..., Any], prefix: str) -> None:
    path, backbone = checkpoint(prefix)
    loaded = DA3Base({"config": "tiny", "weights": str(path)}).load(CPU)
    images = torch.randn(1, 3, 3, 28, 42)
    assert torch.equal(loaded(images, [6])[0], backbone(images, [6])[0])


def test_the_nested_model_gives_its_multi_view_backbone(checkpoint: Callable[..., Any]) -> None:
    def add_metric(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.da3_metric.backbone.pretrained.cls_token"] = torch.zeros(1, 1, 8)

    path, backbone = checkpoint("model.da3.backbone.pretrained.", add_metric, TINY_GATED)
    loaded = DA3Giant({"config": "tiny", "weights": str(path.parent)}).load(CPU)
    assert torch.equal(loaded.camera_token, backbone.camera_token)


def test_matrix_products_are_cast_on_the_way_and_all_else_is_not(checkpoint: Callable[..., Any]) -> None:
    path, _ = checkpoint()
    loaded = DA3Small({"config": "tiny", "weights": str(path), "dtype": "bfloat16"}).load(CPU)
    kinds = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert kinds["blocks.0.attn.qkv.weight"] == kinds["patch_embed.proj.bias"] == torch.bfloat16
    assert kinds["blocks.0.norm1.weight"] == kinds["pos_embed"] == kinds["blocks.5.ls2.gamma"] == torch.float32


def test_a_file_without_a_backbone_names_the_expected_keys(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"model.backbone.pretrained.cls_token": torch.zeros(1, 1, 8)}, path)
    with pytest.raises(CheckpointError, match=r"(?s)no backbone .*pretrained\.camera_token.*mono and metric"):
        find_prefix(path)


def test_a_file_with_two_backbones_is_refused(checkpoint: Callable[..., Any]) -> None:
    path, _ = checkpoint(change=lambda tensors: tensors.update({"camera_token": torch.zeros(1, 2, 32)}))
    with pytest.raises(CheckpointError, match="several backbones"):
        find_prefix(path)


def test_weights_of_another_size_are_refused(checkpoint: Callable[..., Any]) -> None:
    path, _ = checkpoint()
    with pytest.raises(CheckpointError, match=r"missing \(\d+\).*w12.*unexpected \(\d+\).*fc1"):
        DA3Giant({"config": "tiny", "weights": str(path)}).load(CPU)
    with pytest.raises(CheckpointError, match=r"missing.*wrong shape"):
        DA3Base({"weights": str(path)}).load(CPU)


def test_a_truncated_file_is_refused(checkpoint: Callable[..., Any]) -> None:
    path, _ = checkpoint()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="could not be read"):
        DA3Base({"config": "tiny", "weights": str(path)}).load(CPU)


def test_without_network_and_file_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"depth-anything/DA3-LARGE-1\.1.*by hand"):
        DA3Large().load(CPU)
