"""Weights are read whole or not at all, from safetensors alone; and every failure says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from sfkit_transformers.checkpoint import Checkpoint
from sfkit_transformers.failures import explained
from sfkit_transformers.teacher import TransformersTeacher
from torch import Tensor

from sfkit.errors import CheckpointError, ConfigError, SfkitError

Folders = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.fixture
def edited(folders: Folders, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder, whose tensors or config a function may change."""

    def edit(
        name: str,
        tensors: Callable[[dict[str, Tensor]], Any] = lambda state: None,
        config: Callable[[dict[str, Any]], Any] = lambda config: None,
    ) -> Path:
        copy = tmp_path / name
        shutil.copytree(folders(name), copy)
        state = load_file(copy / "model.safetensors")
        tensors(state)
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((copy / "config.json").read_text())
        config(settings)
        (copy / "config.json").write_text(json.dumps(settings))
        return copy

    return edit


def load(folder: Path, **options: Any) -> Any:
    return TransformersTeacher({"model": str(folder), **options}).load(CPU)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dinov2", "encoder.layer.1.mlp.fc1.weight"),
        ("siglip", "vision_model.encoder.layers.2.self_attn.q_proj.bias"),
        ("depth_anything", "backbone.encoder.layer.2.mlp.fc1.weight"),
        ("vjepa2", "encoder.layer.0.attention.proj.weight"),
        ("ijepa", "embeddings.position_embeddings"),
        ("dinov2", "layernorm.weight"),
    ],
)
def test_fault_29_a_missing_tensor_is_an_error_that_names_it(name: str, key: str, edited: Callable[..., Path]) -> None:
    folder = edited(name, lambda state: state.pop(key))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert f"missing (1): {key}." in caught.value.message
    assert "random" in caught.value.remedy


def test_fault_29_more_layers_than_in_the_config_are_an_error(edited: Callable[..., Path]) -> None:
    folder = edited("siglip", config=lambda config: config["vision_config"].update(num_hidden_layers=2))
    with pytest.raises(CheckpointError, match=r"unexpected \(16\): vision_model\.encoder\.layers\.2\."):
        load(folder)


def test_fault_29_another_shape_is_an_error_that_names_both(edited: Callable[..., Path]) -> None:
    folder = edited("vit", config=lambda config: config.update(intermediate_size=56))
    with pytest.raises(CheckpointError, match=r"wrong shape \(9\): encoder\.layer\.0\.intermediate\.dense") as caught:
        load(folder)
    if int(transformers.__version__.split(".")[0]) >= 5:  # older ones do not say the shapes
        assert "intermediate.dense.weight is (48, 24), expected (56, 24)" in caught.value.message


def test_fault_29_the_loaded_weights_are_those_of_the_file(folders: Folders) -> None:
    folder = folders("siglip")
    state = load_file(folder / "model.safetensors")
    seen = {key: value for key, value in state.items() if key.startswith("vision_model.") and ".head." not in key}
    loaded = load(folder).model.state_dict()
    assert loaded.keys() == seen.keys()
    assert all(torch.equal(loaded[key], seen[key]) for key in seen)


def test_parts_that_patch_tokens_do_not_need_may_be_missing(edited: Callable[..., Path]) -> None:
    def drop(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(("pooler.", "embeddings.mask_token"))]:
            state.pop(key)

    assert load(edited("vit", drop))


def test_a_further_part_of_the_file_must_be_named(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2", lambda state: state.update({"adapter.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): adapter\.weight"):
        load(folder)
    assert load(folder, ignore=("adapter",))


def test_fault_29_ignore_does_not_excuse_missing_weights(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2", lambda state: state.pop("layernorm.weight"))
    with pytest.raises(CheckpointError, match="missing"):
        load(folder, ignore=("layernorm",))


def test_weights_in_another_precision_are_read_as_float32(edited: Callable[..., Path]) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        state.update({key: value.bfloat16() for key, value in state.items()})

    model = load(edited("dinov2", halve, lambda config: config.update(dtype="bfloat16")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_that_are_not_finite_are_refused(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2", lambda state: state["layernorm.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"'layernorm\.weight' holds NaN"):
        load(folder)


def test_a_truncated_file_is_refused(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(CheckpointError, match="could not be read") as caught:
        load(folder)
    assert "truncated or damaged" in caught.value.remedy


def test_only_safetensors_are_read(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no weights as safetensors") as caught:
        load(folder)
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/no/such/folder", "There is no folder /no/such/folder"),
        ("./no/such/folder", "There is no folder"),
        ("acme/no-such-model", "acme/no-such-model is not on this machine and could not be fetched"),
        ("not a name", "neither a local folder nor the name of a repository"),
    ],
)
def test_a_model_that_is_not_there(model: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=said):
        TransformersTeacher({"model": model})


def test_a_file_instead_of_a_folder(dinov2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is a file") as caught:
        TransformersTeacher({"model": str(dinov2 / "config.json")})
    assert "folder" in caught.value.remedy


def _response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "http://localhost"))


@pytest.mark.parametrize(
    ("error", "said", "remedy"),
    [
        (hub.GatedRepoError("gated", response=_response(403)), "has not been granted", "Accept its terms at"),
        (hub.RevisionNotFoundError("no", response=_response(404)), "has no revision 'v9'", "revision"),
        (hub.RepositoryNotFoundError("no", response=_response(401)), "There is no repository", "hf auth login"),
        (hub.LocalEntryNotFoundError("offline"), "not on this machine", "HF_HUB_OFFLINE"),
    ],
)
def test_errors_of_the_hub_come_with_a_remedy(
    error: Exception, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=said) as caught:
        TransformersTeacher({"model": "facebook/dinov3-vits16", "revision": "v9"})
    assert remedy in caught.value.remedy


def test_a_repository_with_code_of_its_own_is_not_run(edited: Callable[..., Path]) -> None:
    def own_code(config: dict[str, Any]) -> None:
        config.update(model_type="acme", auto_map={"AutoConfig": "acme.AcmeConfig"})

    folder = edited("dinov2", config=own_code)
    (folder / "acme.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(CheckpointError, match="runs code of its own") as caught:
        TransformersTeacher({"model": str(folder)})
    assert "trust_remote_code" in caught.value.remedy


def test_a_kind_of_model_that_transformers_does_not_know(edited: Callable[..., Path]) -> None:
    folder = edited("dinov2", config=lambda config: config.update(model_type="no_such_type"))
    with pytest.raises(CheckpointError, match=r"configuration of .* could not be read") as caught:
        TransformersTeacher({"model": str(folder)})
    assert "newer release" in caught.value.remedy


def test_a_model_without_patches(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="'bert' has no patch tokens: its configuration has no 'patch_size'"):
        TransformersTeacher({"model": str(tmp_path)})


def test_running_out_of_memory_is_left_to_the_core() -> None:
    with pytest.raises(RuntimeError, match="can't allocate"), explained("m", None, "the weights"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_the_commit_that_was_read_is_recorded(dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TransformersTeacher({"model": str(dinov2)}).identity["weights"] == str(dinov2)
    real = Checkpoint.config

    def from_the_hub(self: Checkpoint) -> Any:
        config = real(self)
        config._commit_hash = "0123abc"
        return config

    monkeypatch.setattr(Checkpoint, "config", from_the_hub)
    assert TransformersTeacher({"model": str(dinov2)}).identity["weights"] == f"{dinov2}@0123abc"


@pytest.mark.parametrize(
    ("card", "stated", "limited"),
    [
        ("---\nlicense: apache-2.0\n---\n", "Apache-2.0", False),
        ("---\nlicense: cc-by-nc-4.0\n---\n", "CC-BY-NC-4.0", True),
        (
            "---\nlicense: other\nlicense_name: dinov3-license\nlicense_link: https://x.org/l\n---\n",
            "dinov3-license (https://x.org/l)",
            False,
        ),
        ("---\nlicense: other\nlicense_name: fair-noncommercial-research-license\n---\n", "fair-noncommercial", True),
        ("# No front matter\n", "unknown: see the model card", False),
        ("---\nlicense: [broken\n---\n", "unknown: see the model card", False),
        (None, "unknown: see the model card", False),
    ],
)
def test_the_license_is_that_of_the_card(
    card: str | None, stated: str, limited: bool, edited: Callable[..., Path]
) -> None:
    folder = edited("dinov2")
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    teacher = TransformersTeacher({"model": str(folder)})
    assert teacher.license.startswith(stated)
    assert teacher.noncommercial == limited
    assert teacher.identity["license"] == teacher.license


def test_the_license_can_be_stated(dinov2: Path) -> None:
    teacher = TransformersTeacher({"model": str(dinov2), "license": "CC-BY-NC-SA-4.0"})
    assert teacher.license == "CC-BY-NC-SA-4.0"
    assert teacher.noncommercial


def test_the_license_of_a_repository_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sfkit_transformers.license import UNKNOWN, license_of

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(tmp_path / "README.md"))
    assert license_of("facebook/vjepa2", None, None) == "MIT"

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise hub.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    assert license_of("facebook/vjepa2", None, None) == UNKNOWN


def test_everything_that_goes_wrong_is_an_error_of_sfkit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SfkitError):
        TransformersTeacher({"model": str(tmp_path)})
