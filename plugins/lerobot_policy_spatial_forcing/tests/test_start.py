"""Where a run starts: a plain checkpoint, local or on the Hub, read by itself and strictly."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfkit.errors import CheckpointError, ConfigError


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "checkpoint")


def _change_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_a_plain_checkpoint_needs_no_field_repeated(make, plain) -> None:
    policy = make("sf_smolvla", pretrained_path=plain)
    config = policy.config
    assert (config.type, config.chunk_size, config.num_vlm_layers) == ("sf_smolvla", 8, 4)
    assert config.sf.base_config == str(plain)
    stored, state = load_file(plain / "model.safetensors"), policy.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    assert policy.spatial_forcing.steps == 0


def test_a_policy_is_copied_and_pickled_with_its_alignment(make, plain) -> None:
    policy = make("sf_smolvla", pretrained_path=plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickling LeRobot's metadata
        copies = (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)))
    for other in copies:
        assert type(other) is type(policy)
        assert other.config == policy.config
        assert other.spatial_forcing.describe() == policy.spatial_forcing.describe()


def test_a_newer_lerobot_saves_the_plain_policy_too(make, plain, tmp_path, monkeypatch) -> None:
    from lerobot.policies.pretrained import PreTrainedPolicy

    def save(self, save_directory: Path) -> None:  # takes no state_dict, as in LeRobot's next release
        self.config._save_pretrained(save_directory)
        save_file(
            {key: value.clone() for key, value in self.state_dict().items()}, save_directory / "model.safetensors"
        )

    monkeypatch.setattr(PreTrainedPolicy, "_save_pretrained", save)
    monkeypatch.setattr(PreTrainedPolicy, "save_pretrained", lambda self, folder: self._save_pretrained(folder))
    policy = make("sf_smolvla", pretrained_path=plain)
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "smolvla"
    assert set(load_file(plain / "model.safetensors")) <= set(load_file(tmp_path / "model.safetensors"))
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "spatial_forcing" in key]
    assert (tmp_path / "spatial_forcing/projector.safetensors").is_file()
    # There the trainer asks every process to save, and the first one writes.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        (tmp_path / str(rank)).mkdir()
        policy.save_pretrained(tmp_path / str(rank))
        assert (tmp_path / str(rank) / "spatial_forcing").exists() is (rank == 0)


@pytest.fixture
def other(copied: Path) -> Path:
    """A checkpoint whose configuration has other values than LeRobot's defaults, 48 and 10."""
    stored = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**stored, "tokenizer_max_length": 20, "num_steps": 3}))
    return copied


def test_what_a_program_sets_wins_over_the_checkpoint(make, plain, other) -> None:
    assert make("sf_smolvla", pretrained_path=plain, n_action_steps=4).config.n_action_steps == 4
    config = make("sf_smolvla", pretrained_path=other, tokenizer_max_length=48, num_steps=10).config
    assert (config.tokenizer_max_length, config.num_steps, config.chunk_size) == (48, 10, 8)


@pytest.mark.parametrize("means", ["yaml", "json", "command line", "command line over yaml"])
def test_fault_65_a_value_that_is_lerobots_default_wins_too(means, other, tmp_path) -> None:
    import yaml
    from lerobot.configs.train import TrainPipelineConfig

    policy = {
        "type": "sf_smolvla", "device": "cpu", "push_to_hub": False, "pretrained_path": str(other),
        "sf": {"teacher": "geometry"},
    }  # fmt: skip
    flags = ["--policy.tokenizer_max_length=48"] if means.startswith("command") else []
    if not flags:
        policy["tokenizer_max_length"] = 48
    elif means.endswith("yaml"):
        policy["tokenizer_max_length"] = 30
    path = tmp_path / ("run.json" if means == "json" else "run.yaml")
    record = {"dataset": {"repo_id": "local/x"}, "policy": policy}
    path.write_text(json.dumps(record) if means == "json" else yaml.safe_dump(record))
    config = TrainPipelineConfig.from_pretrained(path, cli_args=flags).policy
    assert config.tokenizer_max_length == 48
    assert (config.num_steps, config.chunk_size) == (3, 8), "what is not set is the checkpoint's"


def test_a_repository_of_the_hub_is_fetched_with_its_revision(make, plain, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "hub" / "models--somebody--policy"
    shutil.copytree(plain, cache / "snapshots" / "0123abcd")
    (cache / "refs").mkdir()
    (cache / "refs" / "v2").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    policy = make("sf_smolvla", pretrained_path=Path("somebody/policy"), pretrained_revision="v2")
    assert policy.config.chunk_size == 8
    stored = load_file(plain / "model.safetensors")
    assert all(torch.equal(policy.state_dict()[key], value) for key, value in stored.items())
    with pytest.raises(CheckpointError, match=r"somebody/policy is neither a local folder nor a repository"):
        make("sf_smolvla", pretrained_path=Path("somebody/policy"), pretrained_revision="v3")


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_fault_29_keys_that_do_not_fit_are_an_error(what, make, copied) -> None:
    key = "model.state_proj.weight"

    def change(state):
        tensor = state[key].clone()
        if what == "missing":
            del state[key]
        else:
            state["model.another.weight"] = tensor

    _change_weights(copied, change)
    with pytest.raises(CheckpointError, match=rf"1 {what} \(model\.(state_proj|another)\.weight\)"):
        make("sf_smolvla", pretrained_path=copied)


def test_fault_29_damaged_or_misshapen_weights_are_an_error(make, copied) -> None:
    _change_weights(copied, lambda state: state.update({"model.state_proj.weight": torch.zeros(3, 3)}))
    with pytest.raises(CheckpointError, match="could not be loaded"):
        make("sf_smolvla", pretrained_path=copied)
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut off"):
        make("sf_smolvla", pretrained_path=copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="could not be loaded"):
        make("sf_smolvla", pretrained_path=copied)


@pytest.mark.parametrize("what", ["missing", "unexpected", "absent"])
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_fault_29_what_pi0_only_prints_is_an_error(kind, what, make, tiny_pi) -> None:
    folder = tiny_pi(kind)
    if what == "absent":
        (folder / "model.safetensors").unlink()
    else:
        extra, key = {"model.another.weight": torch.zeros(2)}, "model.action_in_proj.weight"
        _change_weights(folder, lambda state: state.update(extra) if what == "unexpected" else state.pop(key))
    with pytest.raises(CheckpointError, match="were not loaded" if what == "absent" else f"1 {what}"):
        make(f"sf_{kind}", pretrained_path=folder)


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_pi0_and_pi05_start_from_a_plain_checkpoint_and_align(kind, make, tiny_pi) -> None:
    from sfkit_lerobot.testing import tiny_lerobot_batch

    folder = tiny_pi(kind)
    policy = make(f"sf_{kind}", pretrained_path=folder).train()
    stored, state = load_file(folder / "model.safetensors"), policy.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    batch = tiny_lerobot_batch(policy, image_size=(96, 96))
    depth = {f"{key}_depth": torch.full((2, 1, 48, 48), 700.0) for key in policy.config.image_features}
    _, logs = policy.forward({**batch, **depth, "index": torch.zeros(2, dtype=torch.long)})
    assert logs["sf_loss"] > 0


def test_a_checkpoint_of_another_policy_names_the_right_type(make, copied) -> None:
    with pytest.raises(ConfigError, match=r"type 'smolvla', but the type asked for is 'sf_pi0'"):
        make("sf_pi0", pretrained_path=copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json could not be read"):
        make("sf_smolvla", pretrained_path=copied)


def test_fault_29_a_projector_of_another_teacher_is_an_error(make, trained) -> None:
    folder = trained[1] / "checkpoints" / "000003" / "pretrained_model"
    assert make("sf_smolvla", pretrained_path=folder).spatial_forcing.steps == 3
    with pytest.raises(CheckpointError, match=r"student_layer was 2 and is 3"):
        make("sf_smolvla", {"student_layer": 3}, pretrained_path=folder)
    with pytest.raises(CheckpointError, match=r"teacher\.options\.cells was 2 and is 3"):
        make("sf_smolvla", {"teacher": {"name": "geometry", "cells": 3}}, pretrained_path=folder)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"teacher": {"name": "geometry", "depth_max": 5.0}}, r"teacher\.options\.depth_max was 10\.0 and is 5\.0"),
        ({"objective": "mse"}, r"objective\.name was 'cosine' and is 'mse'"),
        ({"transforms": ["layer-norm"]}, r"transforms\.0 was absent and is {'name': 'resample'"),
        ({"projector": {"name": "mlp", "norm": False}}, r"projector\.options\.norm was True and is False"),
    ],
)
def test_fault_75_a_run_with_other_options_is_not_resumed(block, message, make, trained) -> None:
    folder = trained[1] / "checkpoints" / "000003" / "pretrained_model"
    with pytest.raises(CheckpointError, match=message):
        make("sf_smolvla", block, pretrained_path=folder)


@pytest.fixture
def saved_otherwise(trained, tmp_path) -> Path:
    """A checkpoint of a version in which two defaults were others: the command line names neither."""
    folder = shutil.copytree(trained[1] / "checkpoints" / "000003" / "pretrained_model", tmp_path / "saved")
    file = folder / "spatial_forcing" / "config.json"
    record = json.loads(file.read_text())
    record["config"]["weight"] = 0.25
    record["config"]["pairs"][0]["teacher"]["options"]["min_valid"] = 0.75
    file.write_text(json.dumps(record))
    return folder


def test_fault_76_a_default_that_changed_since_the_save_is_an_error(make, saved_otherwise) -> None:
    message = r"teacher\.options\.min_valid was 0\.75 and is 0\.5"
    with pytest.raises(CheckpointError, match=message + r"; weight was 0\.25 and is 0\.5\."):
        make("sf_smolvla", pretrained_path=saved_otherwise)
    teacher = {"name": "geometry", "min_valid": 0.75}
    with pytest.raises(CheckpointError, match=r"json: weight was 0\.25 and is 0\.5\."):
        make("sf_smolvla", {"teacher": teacher}, pretrained_path=saved_otherwise)
    for weight in (0.25, 0.5):  # who gives a weight means it
        policy = make("sf_smolvla", {"teacher": teacher, "weight": weight}, pretrained_path=saved_otherwise)
        assert policy.spatial_forcing.steps == 3


def test_a_new_run_may_have_another_weight_and_schedule(make, saved_otherwise, tmp_path) -> None:
    from lerobot_policy_spatial_forcing.resuming import restore
    from lerobot_policy_spatial_forcing.trainer import Trainer

    teacher = {"name": "geometry", "min_valid": 0.75}
    alone = shutil.copytree(saved_otherwise, tmp_path / "alone", ignore=shutil.ignore_patterns("spatial_forcing"))
    handle = make("sf_smolvla", {"teacher": teacher, "schedule": "stop:9"}, pretrained_path=alone).spatial_forcing
    with pytest.raises(CheckpointError, match=r"weight was 0\.25.*schedule\.0 was absent"):
        restore(handle, saved_otherwise, None, Trainer(resume=True), ())
    restore(handle, saved_otherwise, None, Trainer(resume=False), ())
    assert handle.steps == 0


def test_from_pretrained_without_a_config_names_the_other_way(plain) -> None:
    from lerobot.policies.factory import get_policy_class

    with pytest.raises(ConfigError, match=r"SpatialForcing\.from_pretrained"):
        get_policy_class("sf_smolvla").from_pretrained(plain)
