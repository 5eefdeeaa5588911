"""Weights from files that look like the official ones, and files that do not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from sfkit_backbones.weights import without_weights
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.teacher import Vggt, VggtCommercial

from sfkit.errors import CheckpointError

CPU = torch.device("cpu")


def load(path: Path, **options: Any) -> Aggregator:
    loaded = Vggt({"config": "tiny", "weights": str(path), **options}).load(CPU)
    assert isinstance(loaded, Aggregator)
    return loaded


def rewrite(path: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    state = load_file(path)
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def same(one: Aggregator, other: Aggregator) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_official_keys_are_read_and_the_heads_are_left(weights: Path, backbone: Aggregator) -> None:
    loaded = load(weights)
    assert same(loaded, backbone)
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_a_folder_will_do(weights: Path, backbone: Aggregator) -> None:
    assert same(load(weights.parent), backbone)


@pytest.mark.parametrize("inside", [None, "model"])
def test_a_pickled_state_dict_will_do(weights: Path, tmp_path: Path, backbone: Aggregator, inside: str | None) -> None:
    state = load_file(weights)
    torch.save(state if inside is None else {inside: state}, tmp_path / "model.pt")
    assert same(load(tmp_path / "model.pt"), backbone)
    assert same(load(tmp_path), backbone)


def test_heads_are_never_read(weights: Path, tmp_path: Path, backbone: Aggregator) -> None:
    path = rewrite(weights, tmp_path, lambda state: state.update({"point_head.x": torch.full((2,), torch.nan)}))
    assert same(load(path), backbone)  # a NaN that is read is an error


def test_products_may_be_bfloat16(weights: Path) -> None:
    loaded = load(weights, dtype="bfloat16", residual="bfloat16")
    assert loaded.frame_blocks[0].attn.qkv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert loaded.camera_token.dtype == loaded.patch_embed.norm.weight.dtype == torch.float32
    assert loaded.residual == torch.bfloat16
    (found,) = loaded(torch.rand(1, 2, 3, 28, 28), [4])
    assert found.dtype == torch.bfloat16


def renamed(state: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state if key.startswith("aggregator.")]:
        state["module." + key] = state.pop(key)


def test_fault_29_a_renamed_prefix_is_an_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): aggregator\.camera_token[\s\S]*Nothing was loaded"):
        load(rewrite(weights, tmp_path, renamed))


FAULTY: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (
        lambda state: state.pop("aggregator.global_blocks.3.ls2.gamma"),
        r"missing \(1\): aggregator\.global_blocks\.3\.ls2\.gamma",
    ),
    "unexpected in the backbone": (
        lambda state: state.update({"aggregator.frame_blocks.4.x": torch.ones(1)}),
        r"unexpected \(1\): aggregator\.frame_blocks\.4\.x",
    ),
    "unexpected beside it": (
        lambda state: state.update({"head.weight": torch.ones(1)}),
        r"unexpected \(1\): head\.weight",
    ),
    "shape": (
        lambda state: state.update({"aggregator.camera_token": torch.ones(1, 1, 1, 24)}),
        r"camera_token is \(1, 1, 1, 24\), expected \(1, 2, 1, 24\)",
    ),
}


@pytest.mark.parametrize("what", FAULTY)
def test_fault_29_keys_are_checked_strictly(weights: Path, tmp_path: Path, what: str) -> None:
    change, says = FAULTY[what]
    with pytest.raises(CheckpointError, match=says):
        load(rewrite(weights, tmp_path, change))


def test_a_weight_that_is_nan_is_an_error(weights: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["aggregator.camera_token"][0, 0, 0, 0] = torch.nan

    with pytest.raises(CheckpointError, match="NaN"):
        load(rewrite(weights, tmp_path, spoil))


def test_weights_of_another_size_are_an_error(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="wrong shape"):
        Vggt({"weights": str(weights)}).load(CPU)


@pytest.mark.parametrize("keep", [0, 7, 5000, -9])
def test_a_truncated_file_is_an_error(weights: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load(tmp_path / "model.safetensors")


def test_a_pickle_of_objects_is_refused(weights: Path, tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(model="x"), "model": load_file(weights)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"argparse namespace[\s\S]*safetensors"):
        load(tmp_path / "model.pth")


def test_a_wrong_digest_is_an_error(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="sha256"):
        load(weights, sha256="0" * 64)


def test_without_access_the_gate_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*args: Any, **kwargs: Any) -> str:
        import httpx

        raise hub.GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
    with pytest.raises(CheckpointError) as caught:
        VggtCommercial().load(CPU)
    for words in (
        "Accept the VGGT License",
        "https://huggingface.co/facebook/VGGT-1B-Commercial",
        "hf auth login",
        "by hand",
    ):
        assert words in str(caught.value)


def test_the_full_backbone_takes_no_memory_until_it_is_loaded() -> None:
    with without_weights():
        full = Vggt().build()
    assert all(tensor.is_meta for tensor in full.state_dict().values())
    assert not list(full.buffers())  # a buffer that is in no checkpoint would stay without memory
