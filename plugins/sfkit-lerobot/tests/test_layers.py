"""Which layer of LeRobot's own classes to align: depth reaches the ranking by the cameras, as it reaches wrap."""

from __future__ import annotations

import sys

import pytest
import torch
from sfkit_lerobot.testing import tiny_lerobot_batch, tiny_rig
from sfkit_tools import rank_layers

from sfkit.cli import main

TEACHER = ("geometry", {"calibration_steps": 0})


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_every_layer_is_ranked_and_no_hook_is_left(kind, build, wrap) -> None:
    policy = build(kind)
    batch = tiny_lerobot_batch(policy, batch_size=4, geometry=True)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    ranking = rank_layers(policy, batch, TEACHER, cameras=tiny_rig(policy), resamples=20)
    assert [rank.student_layer for rank in ranking.layers] == [0, 1, 2, 3, 4]
    assert (ranking.blocks, ranking.samples) == (4, 4)
    for rank in ranking.layers:
        assert -1 <= rank.cka.low <= rank.cka.value <= 1
        assert rank.probe is not None
    assert len({round(rank.cka.value, 6) for rank in ranking.layers}) == 5, "each layer has tokens of its own"
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert policy.training
    loss, _ = wrap(policy)(batch)
    assert loss.isfinite()


def test_the_command_takes_the_cameras_from_make(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "ranked_pi0.py").write_text(
        "import torch\n"
        "from sfkit_lerobot.testing import tiny_lerobot_batch, tiny_pi0, tiny_rig\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    policy = tiny_pi0()\n"
        "    return policy, tiny_lerobot_batch(policy, batch_size=4, geometry=True), tiny_rig(policy)\n"
    )
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(["rank-layers", f"{tmp_path / 'ranked_pi0.py'}:make", "--teacher", "geometry", "--resamples", "20"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    for line in ("CKA to geometry@1", "depth probe, R²", "PI0Policy: 4 samples"):
        assert line in printed
    assert "uniform" not in printed, "four of four blocks are no choice"
