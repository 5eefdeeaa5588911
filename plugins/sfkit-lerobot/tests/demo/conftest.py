"""The shipped recording, read once, and settings under which a run takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sfkit_lerobot.demo.data import Frames, Split, load_frames, split_episodes
from sfkit_lerobot.demo.settings import Settings

DATA = Path(__file__).parents[4] / "examples" / "metaworld" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the shipped recording is not here: this is no checkout of the repository")
    return DATA


@pytest.fixture(scope="session")
def frames(data: Path) -> Frames:
    return load_frames(data)


@pytest.fixture(scope="session")
def settings(data: Path) -> Settings:
    return Settings(data, steps=4, stride=12, noise_draws=1, checkpoints=2)


@pytest.fixture(scope="session")
def split(frames: Frames, settings: Settings) -> Split:
    return split_episodes(frames, settings.held_out)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
