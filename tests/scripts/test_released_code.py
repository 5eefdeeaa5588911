"""The script that measures presets against the released code: what it measures without a checkout, and its figures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "released_code.py"
PAGES = sorted((ROOT / "docs" / "presets").glob("*.md"))

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not in a checkout of the repository")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("released_code", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "released_code", made)
    spec.loader.exec_module(made)
    for name in ("LLAMA", "GEMMA", "VGGT", "SIT", "DINO"):
        monkeypatch.setattr(made, name, 32)
    monkeypatch.setattr(made, "SIDE", 4)
    return made


def test_bfloat16_moves_gradients_and_float32_does_not(script: Any) -> None:
    rows = list(script.precision())
    assert {row.presets for row in rows} == {
        *("spatial-forcing-openvla", "spatial-forcing-pi0", "rocket"),
        *("irepa", "irepa-latent"),
    }
    assert all(0 < row.figure < 1 for row in rows)
    losses, gradients = ([row.figure for row in rows if word in row.what] for word in ("loss", "gradients"))
    assert all(a <= b for a, b in zip(losses, gradients, strict=True)), "the gradients' figure covers the loss"


def test_the_processors_constants_are_the_nearer_ones(script: Any) -> None:
    exact, processors, cast, _ = (row.figure for row in script.constants())
    assert processors * 1000 < exact
    assert processors * 1000 < cast


def test_xavier_is_wider(script: Any) -> None:
    assert all(row.figure > 1.5 for row in script.start())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_preset_says_how_far_it_is(page: Path) -> None:
    table = page.read_text(encoding="utf-8").partition("## How far from the released code")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == ["what differs", "by how much", "measured"]
    assert len(rows) > 2
    assert all(len(row) == 3 and all(row) for row in rows)
