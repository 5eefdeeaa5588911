"""The demonstration with other policies and other teachers than its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sfkit_demo import run
from sfkit_demo.data import Frames, Split
from sfkit_demo.model import build_policy
from sfkit_demo.run import run_arm
from sfkit_demo.settings import BLOCKS, POLICIES, Arm, Settings
from sfkit_demo.teacher import teacher_note
from torch import nn

from sfkit import SpatialForcing
from sfkit.factory.components import build_adapter
from sfkit.registry.registry import Entry, default_registry
from sfkit.testing.tiny import PatchTeacher


class DrawnTeacher(PatchTeacher):
    """Its weights come from the global generator, whatever its state."""

    name = "drawn"

    def load(self, device: torch.device) -> nn.Module:
        return nn.Linear(3, self.options.dim).to(device)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> str:
    registry = default_registry()
    entry = Entry("teacher", DrawnTeacher.name, DrawnTeacher, "tests")
    monkeypatch.setattr(registry, "entries", [*registry.entries, entry])
    return DrawnTeacher.name


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_has_the_blocks_and_tokens_of_the_report(
    policy: str, frames: Frames, split: Split, settings: Settings, tmp_path: Path
) -> None:
    built, preprocess = build_policy(frames, split.train, Settings(settings.data, policy), tmp_path)
    config: Any = built.config
    assert config.type == policy
    assert 0.9e6 < sum(parameter.numel() for parameter in built.parameters()) < 1.5e6
    adapter: Any = build_adapter(built, None)
    assert (adapter.num_layers, adapter.dim(4)) == (BLOCKS, 96)
    assert adapter.layout((64, 64)).grid == (4, 4)
    rows = torch.linspace(0, len(frames) - 1, 4).long()
    batch = preprocess(frames.batch(rows, settings.chunk))
    built.train()
    torch.manual_seed(0)
    losses, _ = built(batch, reduction="none")
    assert losses.shape == (4,)
    assert bool(losses.isfinite().all())


def test_no_prompt_of_pi05_is_cut_off(frames: Frames, split: Split, settings: Settings, tmp_path: Path) -> None:
    _, preprocess = build_policy(frames, split.train, Settings(settings.data, "pi05"), tmp_path)
    batch = preprocess({"observation.state": frames.state, "task": list(frames.tasks)})
    tokens, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    assert int(mask.sum(1).max()) == mask.shape[1]
    last = tokens.gather(1, mask.sum(1, keepdim=True) - 1)
    assert len(last.unique()) == 1, "each prompt ends alike"


@dataclass
class Seen:
    """What an arm was trained with."""

    cameras: list[Any]
    teachers: list[nn.Module]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen, train, load = Seen([], []), run.train, DrawnTeacher.load

    def watched(policy: nn.Module, *arguments: Any, **options: Any) -> Any:
        handle = SpatialForcing.of(policy)
        seen.cameras += [] if handle is None else [handle.adapter.cameras]
        return train(policy, *arguments, **options)

    def recorded(self: DrawnTeacher, device: torch.device) -> nn.Module:
        seen.teachers.append(load(self, device))
        return seen.teachers[-1]

    monkeypatch.setattr(run, "train", watched)
    monkeypatch.setattr(DrawnTeacher, "load", recorded)
    return seen


def test_pi05_with_a_teacher_that_needs_no_geometry(
    run_demo: Callable[..., Any], drawn: str, seen: Seen, tmp_path: Path
) -> None:
    options = ("--policy", "pi05", "--teacher", drawn, "--teacher-options", "dim=7,joint=true", "--steps", "2")
    done = run_demo(tmp_path, *options, stride=48)
    assert done.code == 0
    assert "pi0.5 from scratch, plain and aligned with drawn, dim=7, joint=True: 2 steps" in done.printed
    assert "teaches nothing about space" in done.printed
    assert seen.cameras == [None]
    weights = [teacher.weight for teacher in seen.teachers]
    assert len(weights) == 3, "one to measure each arm by, one to train with"
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    page = re.sub(r"data:image/png;base64,[^\"]*", "", done.page)
    assert "A small pi0.5 (" in page
    assert "randomly initialized teacher teaches nothing about space" in page
    assert "This teacher gets no depth" in page
    assert "they say nothing about this run, of pi0.5 with the <em>drawn</em> teacher" in page
    for claim in ("SmolVLA classes", "made of depth", "precomputed seeds of", "the spread over seeds"):
        assert claim not in page + done.printed


def test_vggt_shows_its_wiring_without_weights(run_demo: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("sfkit_vggt")
    options = ("--teacher", "vggt", "--teacher-options", "config=tiny,size=28", "--steps", "2")
    done = run_demo(tmp_path, *options, stride=48)
    assert done.code == 0
    assert "aligned with vggt, " in done.printed
    assert "config=tiny" in done.printed
    assert "teaches nothing about space" in done.printed


def test_only_geometry_needs_no_warning(drawn: str) -> None:
    assert teacher_note(("geometry", {"frame": "world"})) == ""
    assert "'drawn' is not the geometry" in teacher_note(drawn)


def test_geometry_is_given_what_it_needs(frames: Frames, settings: Settings, seen: Seen, monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "load_frames", lambda _: frames)
    short = Settings(settings.data, "pi0", steps=2, stride=48, noise_draws=1, checkpoints=1)
    result = run_arm(Arm("aligned", "geometry"), short, lambda _: None)
    assert seen.cameras == [frames.cameras]
    assert len(result.curves.cosine) == 2
