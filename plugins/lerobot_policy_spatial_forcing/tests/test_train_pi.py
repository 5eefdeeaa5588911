"""pi0 and pi0.5 through the command: trained, saved, resumed, and loaded by plain LeRobot."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

_SEEN = ("loss", "action_loss", "sf_loss", "sf_cosine", "grad_norm", "lr")


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_pi0_and_pi05_train_resume_and_load_without_sfkit(
    kind, lerobot_train, common, resume, tiny_pi, tokenizer, tmp_path
) -> None:
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    folder = tmp_path / "run"
    shape = ["--policy.image_resolution=[56,56]", "--policy.chunk_size=8", "--policy.n_action_steps=8"]
    aligned = [f"--policy.type=sf_{kind}", "--policy.sf.teacher=geometry", "--policy.sf.student_layer=2"]
    run = lerobot_train(*common, *shape, *aligned, "--steps=3", "--save_freq=2", f"--output_dir={folder}")
    assert run.teacher_runs == len(run.curve) == 3
    assert run.warnings == []
    for window in run.curve:
        total = window["action_loss"] + window["sf_effective_weight"] * window["sf_loss"]
        assert window["loss"] == pytest.approx(total, rel=1e-4)

    resumed = resume(folder / "checkpoints" / "000002")
    for before, after in zip(run.curve[2:], resumed.curve, strict=True):
        assert {key: after[key] for key in _SEEN} == pytest.approx({key: before[key] for key in _SEEN}, rel=1e-5)
    assert resumed.policy.spatial_forcing.steps == 3

    model = folder / "checkpoints" / "last" / "pretrained_model"
    assert json.loads((model / "config.json").read_text())["type"] == kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = get_policy_class(kind).from_pretrained(model, strict=True)
        before, after = make_pre_post_processors(policy.config, pretrained_path=model)
    stored, state = load_file(model / "model.safetensors"), policy.state_dict()
    assert set(stored) <= set(state)
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    pictures = {key: torch.rand(1, 3, 96, 96) for key in policy.config.image_features}
    batch = before({**pictures, "observation.state": torch.zeros(1, 4), "task": ["reach the goal"]})
    assert after(policy.eval().select_action(batch)).isfinite().all()
