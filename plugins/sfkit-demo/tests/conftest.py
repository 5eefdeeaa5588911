"""The shipped recording, read once, and settings under which a run takes seconds."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sfkit_demo import RECORDING
from sfkit_demo.data import Frames, Split, load_frames, split_episodes
from sfkit_demo.run import ArmResult, run_arm
from sfkit_demo.settings import Settings

from sfkit.cli import main


@pytest.fixture(scope="session")
def data() -> Path:
    return RECORDING


@pytest.fixture(scope="session")
def frames(data: Path) -> Frames:
    return load_frames(data)


@pytest.fixture(scope="session")
def settings(data: Path) -> Settings:
    return Settings(data, steps=4, stride=12, noise_draws=1, checkpoints=2)


@pytest.fixture(scope="session")
def split(frames: Frames, settings: Settings) -> Split:
    return split_episodes(frames, settings.held_out)


@pytest.fixture(scope="session")
def run_demo(frames: Frames, data: Path) -> Callable[..., Any]:
    """``run_demo(folder, *options, stride=12)``: exit code, text, page and arms of one call of ``sfkit demo``.

    Through the command line, in this process, with fewer frames to measure on and no study beside it.
    """

    def run_demo(folder: Path, *options: str, stride: int = 12) -> Any:
        arms, printed = {}, io.StringIO()

        def recorded(*arguments: Any) -> ArmResult:
            result = run_arm(*arguments)
            arms[result.arm] = result
            return result

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr("sfkit_demo.run.load_frames", lambda root: frames)
            patch.setattr("sfkit_demo.arms.run_arm", recorded)
            shorter = functools.partial(Settings, stride=stride, noise_draws=1, checkpoints=2)
            patch.setattr("sfkit_demo.settings.Settings", shorter)
            patch.setattr("sfkit_demo.STUDY", folder / "none.csv")
            patch.chdir(folder)
            with pytest.raises(SystemExit) as ended:
                main(["demo", "--seed", "1", "--jobs", "0", "--data", str(data), "--out", "result", *options])
        page = (folder / "result" / "report.html").read_text(encoding="utf-8")
        text = " ".join(printed.getvalue().split())
        return SimpleNamespace(code=int(ended.value.code or 0), printed=text, page=page, arms=arms)

    return run_demo


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
