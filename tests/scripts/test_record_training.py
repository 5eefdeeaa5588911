"""The recorder of training: the same commit twice is the same, and what differs is found and named."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "record_training"
Load = Callable[[str], ModuleType]

CASES = ["tiny/geometry", "pairs/special", "weight/balance"]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def write(file: Path, checkout: Path, cases: Sequence[str] = CASES) -> Path:
    done = run("--write", file, "--checkout", checkout, "--steps", 3, "--jobs", 1, "--cases", *cases)
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture
def record() -> dict[str, Any]:
    """A record of one case with two parameters and two steps."""
    step = {"loss": 1.0, "sf_cosine": None, "gradients": [["aa", 1.0], None]}
    case = {
        "names": ["first", "second"],
        "initial": [["a0", 2.0], ["b0", 3.0]],
        "steps": [step, copy.deepcopy(step)],
        "final": [["a1", 2.0], ["b1", 3.0]],
        "buffers": [["c", 0.0]],
        "random numbers": "r",
    }
    return {"conditions": {"torch": "2", "steps": 2}, "cases": {"case": case}}


@pytest.fixture
def compare(load: Load) -> Callable[..., Any]:
    return load("record_training/comparing").compare  # type: ignore[no-any-return]


def test_equal_records_are_equal(record: dict[str, Any], compare: Any) -> None:
    report = compare(record, copy.deepcopy(record))
    assert report.same
    assert report.text == "1 of 1 cases are equal to the last bit over 2 steps."


def test_a_nan_is_equal_to_a_nan(record: dict[str, Any], compare: Any) -> None:
    record["cases"]["case"]["steps"][0]["loss"] = float("nan")
    assert compare(record, copy.deepcopy(record)).same


CHANGES: list[tuple[list[Any], Any, str]] = [
    (["initial", 1, 0], "b9", "before the first step, parameter second (position 1): norm 3.0 in both"),
    (["steps", 1, "loss"], 1.5, "step 1, loss: 1.0 and 1.5, a difference of 3.3e-01"),
    (["steps", 1, "sf_cosine"], 0.5, "step 1, sf_cosine: None and 0.5"),
    (["steps", 0, "gradients", 0], ["ab", 1.25], "step 0, gradient of first (position 0): norm 1.0 and 1.25"),
    (["steps", 0, "gradients", 1], ["ab", 1.0], "step 0, gradient of second (position 1): one side has none"),
    (["final", 0], ["a9", 2.0], "after the last step, parameter first (position 0)"),
    (["buffers", 0], ["d", 0.0], "after the last step, buffer 0 (position 0): norm 0.0 in both"),
    (["random numbers"], "s", "the state of torch's random numbers"),
    (["final"], [["a1", 2.0]], "after the last step, number of parameters: 2 and 1"),
]


@pytest.mark.parametrize(
    ("path", "value", "says"), CHANGES, ids=[str(path[0]) + str(i) for i, (path, _, _) in enumerate(CHANGES)]
)
def test_what_differs_is_named(record: dict[str, Any], compare: Any, path: Any, value: Any, says: str) -> None:
    changed = copy.deepcopy(record)
    at = changed["cases"]["case"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    report = compare(record, changed)
    assert not report.same
    assert report.text.startswith("case: ")
    assert says in report.text
    assert "0 of 1 cases are equal" in report.text


def test_the_first_difference_is_the_one_that_is_named(record: dict[str, Any], compare: Any) -> None:
    changed = copy.deepcopy(record)
    for step in changed["cases"]["case"]["steps"]:
        step["loss"] = 2.0
    changed["cases"]["case"]["final"][0] = ["zz", 9.0]
    first, last = compare(record, changed).text.splitlines()
    assert first.startswith("case: step 0, loss")
    assert last.startswith("0 of 1")


def test_other_names_are_said_and_are_no_difference(record: dict[str, Any], compare: Any) -> None:
    changed = copy.deepcopy(record)
    changed["cases"]["case"]["names"][1] = "renamed"
    report = compare(record, changed)
    assert report.same
    assert "compared by position: 1, such as second -> renamed" in report.text


def test_lost_and_failed_cases_are_differences(record: dict[str, Any], compare: Any) -> None:
    lost = {**record, "cases": {}}
    assert not compare(record, lost).same
    assert not compare(lost, lost).same
    failed = {**record, "cases": {"case": {"error": "ValueError: no"}}}
    for pair in ((record, failed), (failed, record), (failed, failed)):
        report = compare(*pair)
        assert not report.same
        assert "ValueError: no" in report.text


def test_new_cases_are_said_and_are_no_difference(record: dict[str, Any], compare: Any) -> None:
    more = {**record, "cases": {**record["cases"], "new": record["cases"]["case"]}}
    report = compare(record, more)
    assert report.same
    assert "the old record lacks them: new" in report.text


def test_records_of_other_libraries_are_not_compared(record: dict[str, Any], compare: Any) -> None:
    report = compare(record, {**record, "conditions": {"torch": "3", "steps": 2}})
    assert not report.same
    assert "cannot be compared" in report.text


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with another layout, whose policy predicts actions that are larger by a millionth."""
    import tomllib

    root = tmp_path_factory.mktemp("changed")
    for name in ("sfkit", "plugins"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "test_*.py", "fixtures"))
    text = (ROOT / "pyproject.toml").read_text()
    (name,) = tomllib.loads(text)["project"]["entry-points"]["sfkit"].values()
    (root / Path(*name.split("."))).with_suffix(".py").rename(root / "sfkit" / "moved.py")
    (root / "pyproject.toml").write_text(text.replace(f'"{name}"', '"sfkit.moved"'))
    with (root / "sfkit" / "testing" / "tiny.py").open("a") as file:
        file.write("\n_act = TinyPolicy.act\nTinyPolicy.act = lambda self, batch: _act(self, batch) * (1 + 2**-20)\n")
    return root


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12) or not SCRIPT.is_dir(), reason="not in the environment of a checkout")
def test_a_commit_is_equal_to_itself_and_a_changed_float_is_found(tmp_path: Path, changed: Path) -> None:
    one, two = (write(tmp_path / f"{name}.json", ROOT) for name in ("one", "two"))
    cases = json.loads(one.read_text())["cases"]
    assert list(cases) == CASES
    assert all(len(case["steps"]) == 3 and case["steps"][0]["sf_loss"] > 0 for case in cases.values())
    same = run("--compare", one, two)
    assert (same.returncode, same.stdout) == (0, "3 of 3 cases are equal to the last bit over 3 steps.\n")

    other = write(tmp_path / "other.json", changed, CASES[:1])
    found = run("--compare", other, one)
    assert found.returncode == 1
    assert found.stdout.startswith("tiny/geometry: step 0, loss: ")
    assert "0 of 1 cases are equal" in found.stdout


def test_modules_from_elsewhere_are_an_error(load: Load, tmp_path: Path) -> None:
    checkout = load("record_training/checkout")
    checkout.check_modules(ROOT)
    with pytest.raises(RuntimeError, match=r"was imported from .*, and not from the checkout"):
        checkout.check_modules(tmp_path)


def test_a_module_without_a_real_file_is_from_nowhere(load: Load, tmp_path: Path, monkeypatch: Any) -> None:
    checkout = load("record_training/checkout")
    monkeypatch.setattr(checkout.sys, "modules", {"torch.ops": ModuleType("torch.ops"), "none": None})
    checkout.sys.modules["torch.ops"].__file__ = "_ops.py"
    monkeypatch.chdir(ROOT)
    checkout.check_modules(tmp_path)


def test_entry_points_are_those_of_the_checkout(load: Load, tmp_path: Path) -> None:
    from importlib.metadata import entry_points

    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "new-name"\n[project.entry-points.sfkit]\nbuiltin = "sfkit.elsewhere"\n'
    )
    checkout = load("record_training/checkout")
    before = list(sys.path)
    with checkout.use_checkout(tmp_path):
        found = [(point.name, point.value) for point in entry_points(group="sfkit")]
    assert found == [("builtin", "sfkit.elsewhere")]
    assert sys.path == before
