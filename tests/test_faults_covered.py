"""Each silent fault is guarded by a test that bears its number, and each such test by a mutant that it must notice.

The mutants themselves are tried by ``make faults``; here it is checked, in no time, that the table still fits the code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "mutations"

pytestmark = pytest.mark.skipif(
    not (ROOT / "sfkit").is_dir() or not (ROOT / "plugins").is_dir(), reason="not in a checkout of the repository"
)


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The table. Its modules are a script's, and are forgotten afterward."""
    monkeypatch.syspath_prepend(str(HERE))
    before = set(sys.modules)
    import mutants

    yield mutants
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").parent == HERE:
            del sys.modules[name]


def test_every_fault_has_a_test_that_bears_its_number(mutants: ModuleType) -> None:
    borne = {number for test in mutants.numbered_tests(ROOT) for number in mutants.numbers_of(test)}
    assert set(mutants.REQUIRED) <= borne


def test_every_fault_has_a_mutant(mutants: ModuleType) -> None:
    assert set(mutants.REQUIRED) <= {mutant.fault for mutant in mutants.MUTANTS}


def test_every_numbered_test_is_proven_by_a_mutant(mutants: ModuleType) -> None:
    proven = {mutants.function_of(test) for mutant in mutants.MUTANTS for test in mutant.tests}
    required = set(mutants.REQUIRED)
    numbered = [test for test in mutants.numbered_tests(ROOT) if required & set(mutants.numbers_of(test))]
    unproven = [test for test in numbered if test not in proven]
    assert not unproven, "add a mutant to tests/mutations for each: a test proves itself by failing without its cause"


def test_every_mutant_fits_the_sources(mutants: ModuleType) -> None:
    for mutant in mutants.MUTANTS:
        texts: dict[str, str] = {}
        for edit in mutant.edits:
            text = texts.get(edit.file) or (ROOT / edit.file).read_text(encoding="utf-8")
            texts[edit.file] = edit.apply(text)
            assert texts[edit.file] != text, mutant.what


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the plugins are written for Python 3.12")
def test_every_mutant_is_a_program(mutants: ModuleType) -> None:
    for mutant in mutants.MUTANTS:
        texts = {edit.file: (ROOT / edit.file).read_text(encoding="utf-8") for edit in mutant.edits}
        for edit in mutant.edits:
            texts[edit.file] = edit.apply(texts[edit.file])
        for text in texts.values():
            ast.parse(text)


def test_every_mutant_names_tests_that_exist_and_bear_its_number(mutants: ModuleType) -> None:
    known = set(mutants.numbered_tests(ROOT))
    for mutant in mutants.MUTANTS:
        assert mutant.tests, mutant.what
        for test in mutant.tests:
            assert mutants.function_of(test) in known, mutant.what
            assert mutant.fault in mutants.numbers_of(test), mutant.what


def test_a_mutant_that_no_longer_applies_is_an_error(mutants: ModuleType) -> None:
    edit = mutants.Edit("file.py", "guard()", "pass")
    assert edit.apply("a; guard()") == "a; pass"
    for text in ("a", "guard(); guard()"):
        with pytest.raises(mutants.StaleMutantError, match=r"file\.py holds this \d times instead of once"):
            edit.apply(text)


def test_a_mutant_counts_as_caught_only_when_its_tests_fail_for_the_right_reason(mutants: ModuleType) -> None:
    from trial import judge

    test = "a.py::test_fault_01_x"
    mutant = mutants.Mutant(fault=1, what="", file="f", old="o", new="n", tests=(test,), says="dead")

    def found(*failed: tuple[str, str, str], code: int = 1, **more: list[str]) -> str:
        return judge(mutant, mutant.tests, {"code": code, "failed": failed, "skipped": [], "astray": [], **more})

    assert found((f"{test}[2]", "Failed", "it is dead")) == ""
    assert "SURVIVED a.py::test_fault_01_x" in found(code=0)
    assert "SURVIVED" in found(("a.py::test_another", "AssertionError", "dead"))
    assert "another reason: NameError" in found((test, "NameError", "dead"))
    assert "without saying 'dead'" in found((test, "AssertionError", "alive"))
    assert "did not run" in found(code=4)
    assert "not the copy" in found((test, "Failed", "dead"), astray=["sfkit.types"])


def test_the_control_must_pass_without_a_skip(mutants: ModuleType) -> None:
    from trial import judge

    nothing = {"code": 0, "failed": [], "skipped": [], "astray": []}
    assert judge(None, (), nothing) == ""
    assert "t (skipped)" in judge(None, (), {**nothing, "skipped": ["t"]})
    assert judge(None, (), {**nothing, "code": 1, "failed": [("t", "AssertionError", "")]})
    assert judge(None, (), {**nothing, "code": 5})


def test_numbers_are_read_from_names(mutants: ModuleType) -> None:
    names = {
        "test_fault_05_35_layer_k": (5, 35),
        "file.py::test_fault_01_and_02_taps_fire": (1, 2),
        "file.py::test_fault_26_images_outside_0_1[2.0--1.0]": (26,),
        "test_fault_4_short": (),
        "test_depth_54_of_something": (),
    }
    assert {name: mutants.numbers_of(name) for name in names} == names
