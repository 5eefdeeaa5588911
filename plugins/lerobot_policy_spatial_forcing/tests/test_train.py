"""From scratch, logged, evaluated, weighted, saved and resumed."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import gymnasium
import pytest
import torch
from safetensors.torch import load_file

_SEEN = ("loss", "action_loss", "sf_loss", "sf_cosine", "grad_norm", "lr")


def test_fault_02_alignment_runs_in_every_trainer_step(trained) -> None:
    run, _ = trained
    assert run.teacher_runs == len(run.curve) == 6
    for window in run.curve:
        total = window["action_loss"] + window["sf_effective_weight"] * window["sf_loss"]
        assert window["loss"] == pytest.approx(total, rel=1e-4)
    assert run.warnings == []


def test_fault_10_the_projector_is_in_the_optimizer_and_moves(trained) -> None:
    run, folder = trained
    known = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    projector = list(run.policy.spatial_forcing.pairs.parameters())
    assert {id(parameter) for parameter in projector} <= known
    first, last = (
        load_file(folder / "checkpoints" / step / "pretrained_model/spatial_forcing/projector.safetensors")
        for step in ("000003", "000006")
    )
    assert any(not torch.equal(first[key], last[key]) for key in first if key.startswith("projectors"))


def test_fault_53_54_geometry_is_for_the_teacher_alone(trained) -> None:
    run, folder = trained
    model = folder / "checkpoints" / "last" / "pretrained_model"
    inputs = set(json.loads((model / "config.json").read_text())["input_features"])
    assert inputs == {"observation.state", "observation.images.corner2", "observation.images.wrist"}
    steps = {
        step["registry_name"]: step for step in json.loads((model / "policy_preprocessor.json").read_text())["steps"]
    }
    assert set(steps["normalizer_processor"]["config"]["features"]) == inputs | {"action"}
    cameras = run.policy.spatial_forcing.adapter.cameras.cameras
    assert {camera.depth_unit for camera in cameras.values()} == {"mm"}  # LeRobot's default, not a guess


def test_fault_31_32_a_resumed_run_is_the_uninterrupted_one(trained, resume) -> None:
    run, folder = trained
    resumed = resume(folder / "checkpoints" / "000003")
    assert [window["steps"] for window in resumed.curve] == [4, 5, 6]
    for before, after in zip(run.curve[3:], resumed.curve, strict=True):
        wanted = pytest.approx({key: before[key] for key in _SEEN}, rel=1e-6, abs=1e-7)
        assert {key: after[key] for key in _SEEN} == wanted, f"step {before['steps']}"
    assert resumed.policy.spatial_forcing.steps == 6


@pytest.fixture(scope="module")
def evaluated(lerobot_train, common, shape, aligned, tmp_path_factory):
    """A run in mixed precision with a huge weight, which looks at held-out episodes after each step."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    flags = ["--steps=2", "--policy.sf.weight=1000", "--policy.use_amp=true", f"--output_dir={folder}"]
    evaluation = ["--eval_steps=1", "--dataset.eval_split=0.5", "--max_eval_samples=2"]
    return lerobot_train(*common, *shape, *aligned, *flags, *evaluation), folder


def test_a_resumed_run_without_alignment_draws_new_noise(trained, resume) -> None:
    resumed = resume(trained[1] / "checkpoints" / "000003", "--policy.sf.weight=0")
    assert resumed.teacher_runs == 0
    assert resumed.policy._random is None
    assert [window["steps"] for window in resumed.curve] == [4, 5, 6]


def test_a_resumed_run_draws_its_random_augmentation_anew(
    lerobot_train, common, shape, aligned, resume, tmp_path
) -> None:
    """As docs/lerobot-train.md says: the data are the same, and what is drawn for them is not."""
    color = '{"brightness": {"weight": 1.0, "type": "ColorJitter", "kwargs": {"brightness": [0.5, 1.5]}}}'
    augmented = ["--dataset.image_transforms.enable=true", f"--dataset.image_transforms.tfs={color}"]
    flags = ["--steps=2", "--save_freq=1", f"--output_dir={tmp_path / 'run'}"]
    run = lerobot_train(*common, *shape, *aligned, *augmented, *flags)
    resumed = resume(tmp_path / "run" / "checkpoints" / "000001")
    before, after = run.curve[1], resumed.curve[0]
    assert (before["steps"], before["lr"]) == (after["steps"], after["lr"])
    assert math.isfinite(after["loss"])
    assert after["loss"] != pytest.approx(before["loss"], rel=1e-5)


def test_fault_30_evaluation_runs_no_teacher(evaluated) -> None:
    run, _ = evaluated
    assert run.curve[-1]["loss"] > 500
    assert len(run.eval_losses) == 2
    assert max(run.eval_losses) < 10
    assert run.teacher_runs == 2


class Env(gymnasium.Env[Any, Any]):
    """Cameras and state of the dataset, three steps long."""

    metadata: ClassVar[dict[str, Any]] = {"render_fps": 10}
    task_description, _max_episode_steps = "reach the goal", 3
    action_space = gymnasium.spaces.Box(-1, 1, (4,))
    _picture = gymnasium.spaces.Box(0, 255, (96, 96, 3), "uint8")
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Dict({"corner2": _picture, "wrist": _picture}),
            "agent_pos": gymnasium.spaces.Box(-1, 1, (4,)),
        }
    )

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {"is_success": True}

    def render(self) -> Any:
        return self._picture.sample()


def test_evaluation_in_an_environment_runs_no_teacher(
    lerobot_train, common, shape, aligned, tmp_path, monkeypatch
) -> None:
    from lerobot.scripts import lerobot_train as module

    played = []
    evaluate = module.eval_policy_all
    monkeypatch.setattr(module, "make_env", lambda *_, **__: {"tiny": {0: gymnasium.vector.SyncVectorEnv([Env])}})
    monkeypatch.setattr(module, "eval_policy_all", lambda **given: played.append(evaluate(**given)) or played[-1])
    flags = [flag for flag in common if not flag.startswith("--env_eval_freq")]
    environment = ["--env.type=pusht", "--env_eval_freq=1", "--eval.n_episodes=1", "--eval.batch_size=1"]
    run = lerobot_train(
        *(*flags, *shape, *aligned, *environment, "--steps=2", "--save_checkpoint=false"),
        f"--output_dir={tmp_path / 'run'}",
    )
    assert [found["per_task"][0]["metrics"]["sum_rewards"] for found in played] == [[3.0], [3.0]]
    assert run.teacher_runs == 2
    assert run.policy.spatial_forcing.steps == 2
    assert run.warnings == []


def test_what_the_health_monitor_finds_is_in_lerobots_log(
    lerobot_train, common, shape, aligned, tmp_path, caplog
) -> None:
    health = '--policy.sf.health={"every": 1, "patience": 2}'
    run = lerobot_train(
        *(*common, *shape, *aligned, health, "--policy.sf.weight=1000", "--steps=5", "--save_checkpoint=false"),
        f"--output_dir={tmp_path / 'run'}",
    )
    warned = [record for record in caplog.records if record.name == "sfkit" and record.levelname == "WARNING"]
    assert [record.message for record in warned if "The alignment gradient dominates" in record.message]
    assert len({record.message for record in warned}) == len(warned)  # each once
    assert all({"sf_grad_ratio", "sf_grad_cosine"} <= set(window) for window in run.curve[1:])
    assert run.warnings == []


def test_mixed_precision_leaves_the_projector_exact(evaluated) -> None:
    run, folder = evaluated
    assert {parameter.dtype for parameter in run.policy.spatial_forcing.pairs.parameters()} == {torch.float32}
    assert all(math.isfinite(window["loss"]) and window["sf_loss"] > 0 for window in run.curve)
    saved = load_file(folder / "checkpoints/last/pretrained_model/spatial_forcing/projector.safetensors")
    assert {value.dtype for key, value in saved.items() if key.startswith("projectors")} == {torch.float32}


def test_the_log_shows_weighted_means_over_its_window(trained, lerobot_train, common, shape, aligned, tmp_path) -> None:
    flags = [flag for flag in common if not flag.startswith("--log_freq")]
    run = lerobot_train(
        *(*flags, *shape, *aligned, "--steps=3", "--log_freq=3", f"--output_dir={tmp_path / 'run'}"),
        *("--sample_weighting.type=uniform", "--save_checkpoint=false"),
    )
    steps, (window,) = trained[0].curve[:3], run.curve
    for key in ("action_loss", "sf_loss", "sf_cosine"):  # weighted samples are averaged otherwise, so only nearly
        assert window[key] == pytest.approx(sum(step[key] for step in steps) / 3, rel=0.05, abs=0.005)
    assert window["loss"] == pytest.approx(
        window["action_loss"] + window["sf_effective_weight"] * window["sf_loss"], rel=1e-4
    )
    assert any(key.startswith("sample_weight_") for key in window)


def test_each_samples_weight_counts_for_its_alignment_too(
    lerobot_train, common, shape, aligned, tmp_path, monkeypatch
) -> None:
    import pandas as pd
    from lerobot.rewards.sarm.rabc import RABCWeights

    from sfkit.training import loss_path

    frames = pd.DataFrame({"index": range(600)}).assign(episode_index=lambda d: d["index"] // 60)
    frames["progress_sparse"] = frames["index"] * 7 % 13 / 13  # forth and back: weights from 0 to 1
    frames.to_parquet(tmp_path / "progress.parquet")
    losses, weights, weigh = [], [], RABCWeights.compute_batch_weights

    def joined(action: torch.Tensor, alignment: torch.Tensor) -> torch.Tensor:
        losses.append((action.detach(), alignment.detach()))
        return add_per_sample(action, alignment)

    def weighed(self: Any, batch: Any) -> Any:
        weights.append(weigh(self, batch)[0])
        return weights[-1], {}

    add_per_sample = loss_path.add_per_sample
    monkeypatch.setattr(loss_path, "add_per_sample", joined)
    monkeypatch.setattr(RABCWeights, "compute_batch_weights", weighed)
    run = lerobot_train(
        *(*common, *shape, *aligned, "--steps=4", f"--output_dir={tmp_path / 'run'}", "--save_checkpoint=false"),
        *("--sample_weighting.type=rabc", f"--sample_weighting.progress_path={tmp_path / 'progress.parquet'}"),
    )
    assert any(weight.min() < 0.5 * weight.max() for weight in weights)
    for window, weight, (action, alignment) in zip(run.curve, weights, losses, strict=True):
        assert action.shape == alignment.shape == weight.shape == (2,)
        assert bool((alignment > 0).all())
        wanted = ((action + alignment) * weight).sum() / (weight.sum() + 1e-6)  # LeRobot's own: all may be 0
        assert window["loss"] == pytest.approx(float(wanted), rel=1e-4)


def test_checkpoints_are_those_of_plain_lerobot_byte_by_byte(trained, plain, tmp_path) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    model = trained[1] / "checkpoints" / "000003" / "pretrained_model"
    ours = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    lerobots = {path.name for path in plain.iterdir()} | {"train_config.json"}
    files = ("README.md", "config.json", "projector.safetensors")
    assert ours == lerobots | {f"spatial_forcing/{name}" for name in files}
    assert "pip install lerobot_policy_spatial_forcing" in (model / "spatial_forcing/README.md").read_text()
    config = PreTrainedConfig.from_pretrained(model)
    assert config.type == "smolvla"
    SmolVLAPolicy.from_pretrained(model, config=config, strict=True).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    # Read once, LeRobot writes 10.0 where it wrote 10.
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((model / "config.json").read_text())


def test_a_run_by_preset_is_what_the_preset_says_and_is_resumed(lerobot_train, common, shape, resume, tmp_path) -> None:
    block = ["--policy.type=sf_smolvla", "--policy.sf.preset=repa", "--policy.sf.teacher=geometry"]
    flags = ["--steps=2", "--save_freq=1", "--policy.sf.student_layer=2", f"--output_dir={tmp_path / 'run'}"]
    run = lerobot_train(*common, *shape, *block, *flags)
    config = run.policy.spatial_forcing.config
    assert (config.projector.name, config.pairs[0].student_layer, config.weight) == ("mlp-silu", 2, 0.5)
    resumed = resume(tmp_path / "run" / "checkpoints" / "000001")
    assert resumed.policy.spatial_forcing.config == config
    assert [window["steps"] for window in resumed.curve] == [2]
    wanted = {key: run.curve[1][key] for key in _SEEN}
    assert {key: resumed.curve[0][key] for key in _SEEN} == pytest.approx(wanted, rel=1e-6, abs=1e-7)
