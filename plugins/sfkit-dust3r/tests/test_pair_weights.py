"""Reading checkpoints: only what is needed, strictly by key."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sfkit_backbones.weights import without_weights
from sfkit_dust3r.backbone import PairBackbone
from sfkit_dust3r.config import FULL
from sfkit_dust3r.teacher import DUSt3RTeacher, MASt3RTeacher

from sfkit.errors import CheckpointError, ConfigError
from sfkit.factory.components import build_teacher

CPU = torch.device("cpu")


def shapes_of(config: Any) -> dict[str, tuple[int, ...]]:
    with without_weights():
        return {key: tuple(value.shape) for key, value in PairBackbone(config).state_dict().items()}


def tiny(path: Path, **options: Any) -> DUSt3RTeacher:
    return DUSt3RTeacher({"config": "tiny", "weights": str(path), **options})


# ---------------------------------------------------------------------------------------------------- the released keys


@pytest.mark.parametrize(
    ("config", "tensors", "values"),
    # Without the mask token, which the released files hold beside these: 768 values.
    [(FULL, 872, 530_767_872 - 768), (FULL.encoder_only(), 292, 303_098_880)],
)
def test_as_many_tensors_and_values_as_the_released_backbone(config: Any, tensors: int, values: int) -> None:
    shapes = shapes_of(config)
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == values


def test_keys_and_shapes_are_those_of_the_released_files(shared: Path) -> None:
    released = json.loads((shared / "facts" / "dust3r_keys.json").read_text())
    ours = shapes_of(FULL)
    assert len(released) == 4
    for name, model in released.items():
        theirs = {key: tuple(shape) for key, shape in model["keys"].items()}
        aliases = {key for pair in model["aliases"] for key in pair}
        rest = {*theirs, *aliases} - ours.keys()
        assert {key: theirs[key] for key in ours} == ours, name
        assert {key.split(".")[0] for key in rest} == {"mask_token", "downstream_head1", "downstream_head2"}, name


@pytest.mark.parametrize(
    ("teacher", "config", "repo", "side"),
    [
        ("dust3r", None, "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", 512),
        ("dust3r", "512-dpt", "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt", 512),
        ("dust3r", "512-linear", "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear", 512),
        ("dust3r", "224-linear", "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear", 224),
        ("mast3r", None, "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", 512),
    ],
)
def test_each_config_has_its_own_repository(
    monkeypatch: pytest.MonkeyPatch, teacher: str, config: str | None, repo: str, side: int
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def refuse(repo: str, name: str, revision: str | None = None) -> str:
        asked.append((repo, name))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    built: Any = build_teacher((teacher, {} if config is None else {"config": config}))
    assert built.identity == {"name": teacher, "license": "CC-BY-NC-SA-4.0", "weights": repo}
    assert built.noncommercial
    assert built.side == side
    with pytest.raises(CheckpointError, match=f"{repo} is not on this machine"):
        built.load(CPU)
    assert asked == [(repo, "model.safetensors")]


def test_an_unknown_config_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean '512-dpt'(.|\n)*512-dpt, 512-linear, 224-linear, tiny"):
        DUSt3RTeacher({"config": "512-dtp"})
    with pytest.raises(ConfigError, match=r"Configs: full, tiny"):
        MASt3RTeacher({"config": "512-dpt"})


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("target", ["encoder", "decoder", "both"])
def test_a_checkpoint_is_read_without_heads_and_mask_token(
    checkpoint: Callable[..., Path], make_backbone: Callable[..., Any], target: str
) -> None:
    backbone = tiny(checkpoint(), target=target).load(CPU)
    wanted = make_backbone().state_dict()
    found = backbone.state_dict()
    assert {key: value for key, value in wanted.items() if target != "encoder" or not key.startswith("dec")}.keys() == (
        found.keys()
    )
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_encoder_alone_reads_no_tensor_of_the_decoder(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfkit_backbones.files import SafeTensorFile

    read: list[str] = []
    get = SafeTensorFile.get
    monkeypatch.setattr(SafeTensorFile, "get", lambda self, key: (read.append(key), get(self, key))[1])
    tiny(checkpoint(), target="encoder").load(CPU)
    assert {key.split(".")[0] for key in read} == {"patch_embed", "enc_blocks", "enc_norm"}


def test_a_bare_state_dict_of_torch_is_read(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    state = load_file(checkpoint())
    torch.save({"model": state}, tmp_path / "model.pth")
    backbone = tiny(tmp_path / "model.pth").load(CPU)
    assert torch.equal(backbone.state_dict()["enc_norm.weight"], state["enc_norm.weight"])


def test_the_released_pth_with_its_namespace_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    settings = argparse.Namespace(model="AsymmetricCroCo3DStereo(...)", lr=1e-4, output_dir=None)
    torch.save({"args": settings, "model": load_file(checkpoint())}, tmp_path / "dust3r.pth")
    with pytest.raises(CheckpointError, match=r"argparse namespace(.|\n)*Use the safetensors file of the same model"):
        tiny(tmp_path / "dust3r.pth").load(CPU)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_says_so(checkpoint: Callable[..., Path], tmp_path: Path, suffix: str, share: float) -> None:
    whole = checkpoint()
    if suffix == "pth":
        torch.save(load_file(whole), tmp_path / "whole.pth")
        whole = tmp_path / "whole.pth"
    content = whole.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.\w+ could not be read(.|\n)*truncated or damaged"):
        tiny(path).load(CPU)


# --------------------------------------------------------------------------------------------------- fault 29: strictly


def test_fault_29_missing_unexpected_misshapen_tensors_are_named(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(
        drop=lambda key: key == "dec_blocks.1.norm_y.bias",
        add={"dec_blocks2.3.norm1.weight": torch.zeros(24), "enc_norm.weight": torch.zeros(31)},
    )
    with pytest.raises(CheckpointError) as caught:
        tiny(path).load(CPU)
    assert "missing (1): dec_blocks.1.norm_y.bias." in str(caught.value)
    assert "unexpected (1): dec_blocks2.3.norm1.weight." in str(caught.value)
    assert "wrong shape (1): enc_norm.weight is (31,), expected (32,)." in str(caught.value)


def test_fault_29_a_deeper_checkpoint_is_not_cut_off(checkpoint: Callable[..., Path]) -> None:
    for target in ("encoder", "decoder"):
        with pytest.raises(CheckpointError, match=r"unexpected \(\d+\): enc_blocks\.2\."):
            tiny(checkpoint(enc_layers=3), target=target).load(CPU)
    with pytest.raises(CheckpointError, match=r"unexpected \(\d+\): dec_blocks\.3\."):
        tiny(checkpoint(dec_layers=4)).load(CPU)


def test_fault_29_one_decoder_is_shared_only_if_requested(
    checkpoint: Callable[..., Path], make_backbone: Callable[..., Any]
) -> None:
    path = checkpoint(drop=lambda key: key.startswith("dec_blocks2."))
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): dec_blocks2\.0(.|\n)*decoders='shared'"):
        tiny(path).load(CPU)
    shared: Any = tiny(path, decoders="shared").load(CPU)
    views = torch.rand(1, 3, 3, 32, 32) * 2 - 1
    both = make_backbone()
    both.dec_blocks2.load_state_dict(both.dec_blocks.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(shared(views, [3]), both(views, [3]))
    with pytest.raises(CheckpointError, match=r"unexpected \(\d+\): dec_blocks2\."):
        tiny(checkpoint(), decoders="shared").load(CPU)
    assert tiny(path, target="encoder").load(CPU) is not None
