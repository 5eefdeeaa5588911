"""What a file sets in the ``sf`` block: a stranger's configuration runs no code and reaches nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shlex
import shutil
from pathlib import Path

import draccus
import pytest
from lerobot.configs import PreTrainedConfig
from lerobot_policy_spatial_forcing import SpatialForcingOptions
from lerobot_policy_spatial_forcing.origin import check_cameras

from sfkit.errors import ConfigError, TrustError

TRAP = """
from pathlib import Path
from transformers import Dinov2Config

Path({marker!r}).touch()


class AcmeConfig(Dinov2Config):
    model_type = "dinov2"
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of a model with code of its own, and the file that this code writes when it is imported."""
    pytest.importorskip("sfkit_transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "trap", tmp_path / "it-ran"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "acme", "auto_map": {"AutoConfig": "acme.AcmeConfig"}})
    )
    (folder / "acme.py").write_text(TRAP.format(marker=str(marker)))
    return folder, marker


def _teacher(folder: Path, trust: bool = True) -> str:
    return json.dumps({"name": f"hf:{folder}", "trust_remote_code": trust})


@pytest.fixture
def hostile(trained, trap, tmp_path: Path) -> Path:
    """A checkpoint of LeRobot whose files name the trap as the teacher."""
    copied = tmp_path / "run" / "checkpoints" / "000003"
    shutil.copytree(trained[1] / "checkpoints" / "000003", copied)
    config = copied / "pretrained_model" / "train_config.json"
    record = json.loads(config.read_text())
    record["policy"]["sf"]["teacher"] = _teacher(trap[0])
    config.write_text(json.dumps(record))
    return copied / "pretrained_model"


def test_fault_56_a_training_configuration_runs_no_code(hostile, trap, lerobot_train) -> None:
    with pytest.raises(TrustError, match="trust_remote_code=True") as caught:
        lerobot_train(f"--config_path={hostile / 'train_config.json'}", "--resume=true")
    assert not trap[1].exists()
    flag = shlex.split(caught.value.remedy)
    assert any(part.startswith("--policy.sf.options={") for part in flag)


def test_fault_56_a_policys_configuration_runs_no_code(hostile, trap, lerobot_train, common) -> None:
    record = json.loads((hostile / "train_config.json").read_text())["policy"]
    (hostile / "config.json").write_text(json.dumps(record))
    with pytest.raises(TrustError, match="trust_remote_code=True"):
        lerobot_train(*common, f"--policy.path={hostile}", "--steps=1", f"--output_dir={hostile.parent / 'out'}")
    assert not trap[1].exists()


def test_fault_56_a_configuration_read_by_a_program_runs_no_code(hostile, trap, meta) -> None:
    from lerobot.policies.factory import make_policy

    record = json.loads((hostile / "train_config.json").read_text())["policy"]
    (hostile / "config.json").write_text(json.dumps({**record, "pretrained_path": None}))
    config = PreTrainedConfig.from_pretrained(hostile)
    with pytest.raises(TrustError, match="trust_remote_code=True"):
        make_policy(config, ds_meta=meta)
    assert not trap[1].exists()


def read(monkeypatch: pytest.MonkeyPatch, *flags: str, **stored: str) -> SpatialForcingOptions:
    """The block of a file that holds ``stored``, with these flags on the command line."""
    monkeypatch.setattr("sys.argv", ["lerobot-train", *flags])
    given = dict(flag.removeprefix("--policy.sf.").split("=", 1) for flag in flags if flag.startswith("--policy.sf."))
    return draccus.decode(SpatialForcingOptions, {**stored, **given})


def test_fault_56_the_hub_names_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"teacher": "hf:owner/model"}
    block = read(monkeypatch, "--config_path=somebody/run", **stored)
    with pytest.raises(TrustError, match="somebody/run asks for teacher 'hf:owner/model' with model=") as caught:
        block.admitted_arguments()
    flag = next(part for part in shlex.split(caught.value.remedy.rstrip(".")) if part.startswith("--"))
    allowed = read(monkeypatch, "--config_path=somebody/run", flag, **stored).admitted_arguments()["teacher"]
    assert (allowed.name, allowed.options) == ("hf", {"model": "owner/model"})
    again = read(monkeypatch, "--config_path=somebody/run", "--policy.sf.teacher=hf:owner/model", **stored)
    assert again.admitted_arguments()["teacher"].name == "hf:owner/model"


def test_fault_56_pairs_of_the_hub_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    block = read(monkeypatch, "--config_path=somebody/run", pairs='[[2, "geometry"], [1, "hf:owner/model"]]')
    with pytest.raises(TrustError, match="hf:owner/model"):
        block.admitted_arguments()
    block = read(monkeypatch, "--config_path=somebody/run", pairs='[[2, "geometry"]]')
    (pair,) = block.admitted_arguments()["pairs"]
    assert (pair["student_layer"], pair["teacher"].name) == (2, "geometry")


def test_fault_56_a_local_file_names_places_and_it_is_logged(tmp_path, monkeypatch, caplog) -> None:
    path = tmp_path / "train_config.json"
    path.write_text("{}")
    block = read(monkeypatch, f"--config_path={path}", teacher="hf:owner/model")
    assert block.admitted_arguments()["teacher"].options == {"model": "owner/model"}
    assert any("names model='owner/model'" in record.getMessage() for record in caplog.records)
    # A local file that leads to a policy of the Hub is as free as that one.
    block = read(monkeypatch, f"--config_path={path}", "--policy.path=somebody/run", teacher="hf:owner/model")
    with pytest.raises(TrustError):
        block.admitted_arguments()


def test_fault_56_options_in_a_file_are_the_files(tmp_path, monkeypatch) -> None:
    path = tmp_path / "train_config.json"
    path.write_text("{}")
    options = json.dumps({"hf:owner/model": {"trust_remote_code": True}})
    block = read(monkeypatch, f"--config_path={path}", teacher="hf:owner/model", options=options)
    with pytest.raises(TrustError, match="trust_remote_code=True"):
        block.admitted_arguments()


def test_fault_56_the_hub_names_no_calibration_file(tmp_path, monkeypatch, caplog) -> None:
    block = read(monkeypatch, "--config_path=somebody/run", cameras="/etc/passwd")
    with pytest.raises(TrustError, match=r"--policy\.sf\.cameras=/etc/passwd"):
        check_cameras(block.cameras)
    check_cameras(read(monkeypatch, "--config_path=somebody/run", "--policy.sf.cameras=/etc/passwd").cameras)
    check_cameras("/etc/passwd")
    block = read(monkeypatch, f"--config_path={tmp_path}", cameras="/etc/passwd")
    check_cameras(block.cameras)
    assert any("names cameras='/etc/passwd'" in record.getMessage() for record in caplog.records)


def test_fault_56_copies_of_a_block_remember_where_it_is_from(monkeypatch) -> None:
    block = read(monkeypatch, teacher="hf:owner/model")
    copies = (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), dataclasses.replace(block, weight=0.1))
    for other in copies:
        with pytest.raises(TrustError):
            other.admitted_arguments()


def test_what_a_program_or_the_command_line_sets_is_trusted(monkeypatch) -> None:
    teacher = json.dumps({"name": "hf:owner/model", "trust_remote_code": True})
    made = SpatialForcingOptions(teacher=teacher).admitted_arguments()["teacher"]
    assert made.options == {"trust_remote_code": True}
    given = read(monkeypatch, f"--policy.sf.teacher={teacher}").admitted_arguments()["teacher"]
    assert given == made
    options = json.dumps({"hf:owner/model": {"norm": "none"}})
    made = SpatialForcingOptions(teacher="hf:owner/model", options=options).admitted_arguments()["teacher"]
    assert made.options == {"model": "owner/model", "norm": "none"}


@pytest.mark.parametrize(("options", "says"), [("[1]", "Write JSON"), ('{"riski": {}}', "'riski', which is no comp")])
def test_options_that_fit_nothing_are_an_error(options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        SpatialForcingOptions(teacher="geometry", options=options).admitted_arguments()


def test_fault_59_sizes_are_asked_before_a_policy_is_fetched(monkeypatch) -> None:
    import huggingface_hub
    from lerobot_policy_spatial_forcing.sources import fetch

    from sfkit.errors import CheckpointError

    class Info:
        path, size = "spatial_forcing/projector.safetensors", 2**40

    def refuse(*args, **options) -> None:
        raise AssertionError("it was fetched")

    monkeypatch.setattr(huggingface_hub.HfApi, "get_paths_info", lambda *args, **options: [Info])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes"):
        fetch("somebody/run", None)


def test_fault_82_options_reach_what_a_preset_names(tmp_path, monkeypatch) -> None:
    options = json.dumps({"hf:facebook/dinov2-base": {"norm": "none"}})
    made = SpatialForcingOptions(preset="repa", options=options).admitted_arguments()
    assert made["teacher"].options == {"model": "facebook/dinov2-base", "norm": "none"}
    assert made["preset"] == "repa"
    assert "projector" not in made, "nothing is said of it"
    made = SpatialForcingOptions(preset="repa", options='{"mlp-silu": {"norm": true}}').admitted_arguments()
    assert made["projector"].options == {"hidden": 2048, "norm": True}
    with pytest.raises(ConfigError, match="names 'mlp-silu', which is no component"):
        SpatialForcingOptions(preset="repa", projector="mlp", options='{"mlp-silu": {}}').admitted_arguments()
    # What a file says of the preset's components stays the file's.
    options = json.dumps({"hf:facebook/dinov2-base": {"trust_remote_code": True}})
    with pytest.raises(TrustError, match="trust_remote_code=True"):
        read(monkeypatch, "--config_path=somebody/run", preset="repa", options=options).admitted_arguments()


def test_fault_82_the_pictures_statistics_stay_beside_options(make, plain, monkeypatch) -> None:
    stats = {"front": {"mean": (0.5,), "std": (0.25,)}}
    monkeypatch.setattr("lerobot_policy_spatial_forcing.modeling_sf.picture_stats", lambda *_: stats)
    policy = make("sf_smolvla", {"adapter": "smolvla"}, pretrained_path=plain)
    assert policy.spatial_forcing.adapter.options.image_stats == stats
