"""``lerobot-train`` on stored features: the trainer's own dataset says which frames a batch holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Subset

from sfkit.testing.tiny import PatchTeacher

sfkit_store = pytest.importorskip("sfkit_store", reason="sfkit-store is not installed")


def test_lerobot_train_reads_a_store(
    lerobot_train: Any, trained: Any, common: list[str], shape: list[str], opened: Any, tmp_path: Path
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    first = LeRobotDataset("local/metaworld-mini", root=opened.root, episodes=[1], video_backend="pyav")
    count = len(first)
    frames = sfkit_store.LeRobotFrames(Subset(first, range(count)), trained[0].policy, batch_size=16)
    store = sfkit_store.build_store(tmp_path / "store", PatchTeacher(), frames, grid=(4, 4))
    assert len(store) == count
    flags = [
        "--policy.type=sf_smolvla",
        f"--policy.sf.teacher=store:{tmp_path / 'store'}",
        "--policy.sf.student_layer=2",
    ]
    flags += ["--dataset.episodes=[1]", "--steps=3", f"--output_dir={tmp_path / 'run'}"]
    run = lerobot_train(*[flag for flag in common if "episodes" not in flag], *shape, *flags)
    assert len(run.curve) == 3
    assert all(window["sf_loss"] > 0 for window in run.curve)
