"""The custom training script: SpatialForcing.wrap in a loop of one's own."""

from __future__ import annotations

import json
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "lerobot" / "train.py"


@pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not beside these tests")
def test_the_script_trains_and_saves(data, vlm, tmp_path, monkeypatch, capsys) -> None:
    flags = [
        "--steps=3",
        "--batch-size=2",
        "--chunk=8",
        "--student-layer=2",
        "--image-side=64",
        "--log-every=1",
        "--device=cpu",
    ]
    monkeypatch.setattr("sys.argv", ["train.py", f"--data={data}", f"--vlm={vlm}", f"--output={tmp_path}", *flags])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    shown = capsys.readouterr().out
    assert "step 3: action_loss" in shown
    assert "gradient reaches the policy: yes" in shown
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "smolvla"
    assert (tmp_path / "spatial_forcing/projector.safetensors").is_file()
