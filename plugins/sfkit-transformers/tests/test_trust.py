"""A model's folder may be hostile: its code runs by permission of the call alone, and its files lead nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sfkit_transformers.teacher import TransformersTeacher

from sfkit import SfkitWarning, SpatialForcing
from sfkit.errors import CheckpointError, TrustError
from sfkit.testing.tiny import TinyAdapter, TinyPolicy
from sfkit.utils.places import digest_of

_CODE = """
from pathlib import Path
from transformers import Dinov2Config

Path({marker!r}).touch()


class AcmeConfig(Dinov2Config):
    model_type = "dinov2"
"""


@pytest.fixture
def trap(dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of a model with code of its own, and the file that this code writes when it is imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "home" / "alice" / "trap", tmp_path / "it-ran"
    shutil.copytree(dinov2, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="acme", auto_map={"AutoConfig": "acme.AcmeConfig"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "acme.py").write_text(_CODE.format(marker=str(marker)))
    return folder, marker


def checkpoint_of(folder: Path, target: Path, **options: Any) -> Path:
    """A checkpoint whose config.json names ``folder`` as its teacher, written as an attacker would."""
    plain = policy()
    SpatialForcing.wrap(plain, "geometry", student_layer=2, adapter=TinyAdapter(plain))
    plain.spatial_forcing.save(target)  # type: ignore[attr-defined]
    file = target / "spatial_forcing" / "config.json"
    record = json.loads(file.read_text())
    record["config"]["pairs"][0]["teacher"] = {"name": f"hf:{folder}", "options": options}
    file.write_text(json.dumps(record))
    return target


def policy() -> TinyPolicy:
    torch.manual_seed(0)
    return TinyPolicy()


def load(source: Path | str, **arguments: Any) -> Any:
    plain = policy()
    return SpatialForcing.from_pretrained(plain, source, adapter=TinyAdapter(plain), **arguments).spatial_forcing


def test_fault_56_a_checkpoint_does_not_run_code(trap: tuple[Path, Path], tmp_path: Path) -> None:
    folder, marker = trap
    source = checkpoint_of(folder, tmp_path / "run", trust_remote_code=True)
    with pytest.raises(TrustError, match="trust_remote_code=True") as caught:
        load(source)
    assert f"options={{'hf:{folder}': {{" in caught.value.remedy
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="runs code of its own"):
        load(checkpoint_of(folder, tmp_path / "another"))
    assert not marker.exists()


def test_fault_56_the_call_permits_code(trap: tuple[Path, Path], tmp_path: Path) -> None:
    """And the trap is one: without the check its code would have run."""
    folder, marker = trap
    source = checkpoint_of(folder, tmp_path / "run", trust_remote_code=True)
    key = f"hf:{folder}"
    with pytest.raises(TrustError, match="model="):
        load(source, options={key: {"trust_remote_code": True}})
    assert not marker.exists()
    given = {key: {"trust_remote_code": True, "model": str(folder)}}
    with (
        pytest.warns(SfkitWarning, match="saved with sfkit-transformers None"),  # the run was one of geometry
        pytest.raises(CheckpointError, match="does not fit"),
    ):
        load(source, options=given)
    assert marker.exists()


def test_fault_57_a_models_folder_is_published_by_digest(dinov2: Path, tmp_path: Path) -> None:
    home = shutil.copytree(dinov2, tmp_path / "home" / "alice" / "dinov2")
    plain = policy()
    SpatialForcing.wrap(plain, f"hf:{home}", student_layer=2, adapter=TinyAdapter(plain))
    plain.spatial_forcing.save(tmp_path / "run")  # type: ignore[attr-defined]
    for file in (tmp_path / "run" / "spatial_forcing").iterdir():
        assert b"alice" not in file.read_bytes(), file.name
    record = json.loads((tmp_path / "run" / "spatial_forcing" / "config.json").read_text())
    digest = digest_of(str(home))
    teacher = record["config"]["pairs"][0]["teacher"]
    assert (teacher["name"], teacher["options"]["revision"]) == (f"hf:sha256:{digest}", None)
    assert "model" not in teacher["options"]
    assert record["teachers"][0]["name"] == f"hf:sha256:{digest}"
    with pytest.raises(TrustError, match="model lay on the machine that saved it") as caught:
        load(tmp_path / "run")
    assert f"options={{'hf:sha256:{digest}': {{'model': '/path/to/it'}}}}" in caught.value.remedy
    assert (
        load(tmp_path / "run", options={f"hf:sha256:{digest}": {"model": str(home)}}).runners[0].teacher.name
        == f"hf:{home}"
    )


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _write(name: str, content: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(content)) and None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_write("adapter_config.json", {"base_model_name_or_path": "evil/base"}), "adapter_config.json names 'evil/ba"),
        (_config(backbone="evil/backbone"), "backbone names 'evil/backbone'"),
        (_config(use_pretrained_backbone=True), "use_pretrained_backbone names True"),
        (_config(attn_implementation="evil/kernel"), "compiled code of another repository"),
        (_config(vision_config={"_attn_implementation": "evil/kernel"}), "compiled code of another repository"),
        (_config(experts_implementation={"": "evil/kernel"}), "compiled code of another repository"),
        (_config(configuration_files=["../config.4.0.0.json"]), "outside of the model's folder"),
        (_write("model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}}), "outside of the model's"),
    ],
)
def test_fault_56_a_models_files_name_no_other_place(
    change: Callable[[Path], None], says: str, dinov2: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(dinov2, tmp_path / "model")
    TransformersTeacher({"model": str(folder)})
    change(folder)
    with pytest.raises(TrustError, match=says):
        TransformersTeacher({"model": str(folder)})


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "model.safetensors.index.json"])
def test_a_hostile_json_is_an_error_of_ours(name: str, dinov2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dinov2, tmp_path / "model")
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested"):
        TransformersTeacher({"model": str(folder)})
