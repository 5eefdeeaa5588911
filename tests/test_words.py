"""The words of the project: those that it has given up stay away, and the glossary is short."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "scripts" / "words.py").is_file(), reason="not in a checkout of the repository"
)


@pytest.fixture(scope="module")
def words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / "scripts" / "words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "line",
    [
        "SpatialForcing.wrap(policy, teacher, depth=2)",
        'pairs=[{"depth": 2, "teacher": "geometry"}]',
        "lerobot-train --policy.sf.depth=8",
        "--policy.sf.layer=17",
        'SpatialForcing.wrap(policy, teacher, join="carrier")',
        'wrap(policy, recompute="cheap")',
        'logs["sf_weight"]',
        'metrics()["valid_tokens"]',
        'health={"persist": 6}',
        "sfkit layers my_project.train:make",
        "from sfkit_lerobot import LaterFrames",
        "The tokens are out of register.",
        "the licence of the weights",
        "a normalised colour",
        "two metres",
    ],
)
def test_a_word_that_was_given_up_is_found(words: ModuleType, line: str) -> None:
    assert [number for number, _, _ in words.findings(f"fine\n{line}\n")]
    assert {number for number, _, _ in words.findings(f"fine\n{line}\n")} == {2}


@pytest.mark.parametrize(
    "line",
    [
        'GenericAdapter(depth="depth", depth_unit="m")',
        "views.depth is the depth map in meters",
        "SpatialForcing.wrap(policy, teacher, student_layer=2, teacher_layer=3)",
        'logs["sf_effective_weight"], metrics()["sf_valid_token_fraction"]',
        'inputs["images_normalised"]',
        "a precise parameter, a promise, otherwise",
    ],
)
def test_words_in_use_are_left_alone(words: ModuleType, line: str) -> None:
    assert list(words.findings(line)) == []


def test_the_glossary_defines_each_of_at_most_20_terms_once() -> None:
    terms = re.findall(
        r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert 15 <= len(terms) <= 20
    assert len(set(terms)) == len(terms)
