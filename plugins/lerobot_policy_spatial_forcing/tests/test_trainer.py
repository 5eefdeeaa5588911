"""The settings of a run are those that the trainer and its open dataset really have, wherever they came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs.train import TrainPipelineConfig
from lerobot_policy_spatial_forcing.trainer import Trainer, read_trainer

from sfkit.errors import ConfigError


def _units(run: Any) -> set[str]:
    return {camera.depth_unit for camera in run.policy.spatial_forcing.adapter.cameras.cameras.values()}


@pytest.fixture
def stored(trained) -> Path:
    """``pretrained_model`` of a run after three steps."""
    return trained[1] / "checkpoints" / "000003" / "pretrained_model"


@pytest.fixture
def hub(stored, tmp_path, monkeypatch) -> str:
    """The name of a Hub repository that holds a training configuration, fetched before."""
    snapshot = tmp_path / "hub" / "models--somebody--run" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    record = json.loads((stored / "train_config.json").read_text())
    record["dataset"]["depth_output_unit"] = "m"
    record["log_freq"] = 2
    (snapshot / "train_config.json").write_text(json.dumps(record))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "somebody/run"


def _expect(run: Any, steps: list[int]) -> None:
    """Meters, and figures of every second step."""
    assert _units(run) == {"m"}
    assert [window["steps"] for window in run.curve] == steps
    assert all(window["sf_loss"] > 0 for window in run.curve), "depth is in range"


def test_fault_63_settings_of_a_program_are_used(lerobot_train, stored, tmp_path) -> None:
    flags = ["--dataset.depth_output_unit=m", "--log_freq=2", "--steps=2", f"--output_dir={tmp_path / 'run'}"]
    config = TrainPipelineConfig.from_pretrained(stored, cli_args=flags)
    _expect(lerobot_train(config=config), [2])


def test_fault_63_settings_of_the_hub_are_used(lerobot_train, hub, tmp_path) -> None:
    run = lerobot_train(f"--config_path={hub}", "--steps=2", f"--output_dir={tmp_path / 'run'}")
    _expect(run, [2])
    assert run.policy.spatial_forcing.steps == 2


def test_fault_63_settings_of_a_resumed_hub_run_are_used(lerobot_train, hub, stored, tmp_path, monkeypatch) -> None:
    copied = tmp_path / "run" / "checkpoints" / "000003"
    shutil.copytree(stored.parent, copied)
    monkeypatch.setattr("lerobot.common.train_utils.resolve_resume_checkpoint", lambda *_: copied)
    run = lerobot_train(f"--config_path={hub}", "--resume=true", f"--output_dir={tmp_path / 'run'}")
    _expect(run, [4, 6])
    assert run.policy.spatial_forcing.steps == 6


def test_fault_63_the_unit_is_not_that_of_a_flag_that_is_ignored(
    lerobot_train, common, shape, aligned, tmp_path
) -> None:
    # With held-out episodes LeRobot opens its datasets without the unit.
    flags = ["--dataset.depth_output_unit=m", "--dataset.eval_split=0.5", "--steps=1", "--save_checkpoint=false"]
    run = lerobot_train(*common, *shape, *aligned, *flags, f"--output_dir={tmp_path / 'run'}")
    assert run.curve[0]["sf_loss"] > 0
    assert _units(run) == {"mm"}


def test_fault_63_an_unknown_dataset_is_refused(opened, stored) -> None:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy
    from lerobot_policy_spatial_forcing import CONFIGS, SpatialForcingOptions

    def make(teacher: str) -> Any:
        meta = LeRobotDatasetMetadata("local/x", root=opened.root)
        block = SpatialForcingOptions(teacher=teacher, student_layer=2)
        config = CONFIGS["sf_smolvla"](sf=block, device="cpu", push_to_hub=False, pretrained_path=stored)
        return make_policy(config, ds_meta=meta)

    with pytest.raises(ConfigError, match="there is only the metadata"):
        make("geometry")


def test_the_trainer_is_known_by_its_policy_and_dataset(opened, stored) -> None:
    config = TrainPipelineConfig.from_pretrained(stored, cli_args=['--rename_map={"a": "b"}', "--log_freq=0"])
    other = TrainPipelineConfig.from_pretrained(stored, cli_args=["--log_freq=7"])

    def policy() -> Trainer:
        nearer = other  # of another policy
        return read_trainer(config.policy, opened.meta) if nearer else Trainer()

    def train(cfg: Any, dataset: Any) -> Trainer:
        return policy()

    found = train(config, opened)
    assert (found.log_freq, found.resume, found.rename_map) == (1, False, {"a": "b"})
    assert found.dataset is opened
    assert read_trainer(object(), object()) == Trainer()
    assert read_trainer(None, None) == Trainer()


@pytest.fixture
def streamed(data) -> Any:
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    return StreamingLeRobotDataset("local/x", root=data)


def test_fault_64_depth_of_a_streamed_dataset_is_refused(streamed, stored) -> None:
    from lerobot.policies.factory import make_policy
    from lerobot_policy_spatial_forcing import CONFIGS, SpatialForcingOptions

    block = SpatialForcingOptions(teacher="geometry", student_layer=2)
    config = CONFIGS["sf_smolvla"](sf=block, device="cpu", push_to_hub=False, pretrained_path=stored)
    with pytest.raises(ConfigError, match=r"LeRobot ignores --dataset\.depth_output_unit"):
        make_policy(config, ds_meta=streamed.meta)
