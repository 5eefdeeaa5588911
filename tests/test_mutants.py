"""Each silent fault is guarded, in each distribution that has a test of its number, by a test that a mutant proves.

``make mutants`` tries the mutants; here it is checked, in seconds, that the table fits the sources and the tests.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "mutations"

pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "sfkit").is_dir() or not (ROOT / "plugins").is_dir(), reason="not in a checkout of the repository"
    ),
    pytest.mark.skipif(sys.version_info < (3, 12), reason="the plugins are written for Python 3.12"),
]

_FUNCTION = """
def train(self, policy, strict=True):
    \"\"\"Docs.\"\"\"
    found = load(policy, strict=strict)
    self.check(found)
    with guard(policy), torch.no_grad():
        if found is None or policy.frozen:
            raise TapError("nothing")
    masked = found & policy.mask
    log({"loss": masked.mean(), "weight": 0.5})
    return masked.sum() / 0.25
"""


@pytest.fixture(scope="module")
def mutations() -> Iterator[SimpleNamespace]:
    """What the modules of the script define. They are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        modules = [import_module(name) for name in ("operators", "sources", "mutant", "table", "trial")]
        yield SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").parent == HERE:
            del sys.modules[name]


@pytest.fixture(scope="module")
def functions(mutations: SimpleNamespace) -> Any:
    return mutations.Functions.of(ROOT)


@pytest.fixture(scope="module")
def tests(mutations: SimpleNamespace) -> Any:
    return mutations.Tests.of(ROOT)


def _changed(operator: Any) -> str:
    """The lines of the example that an operator changes, as they are afterwards."""
    tree = ast.parse(_FUNCTION)
    before = ast.unparse(tree).splitlines()
    operator.apply(tree)
    return "\n".join(line.strip() for line in ast.unparse(tree).splitlines() if line not in before)


# ---------------------------------------------------------------------------------------------------------- the table


def test_every_fault_has_a_test_that_bears_its_number(mutations: SimpleNamespace, tests: Any) -> None:
    assert {fault for fault, _ in tests.guarded()} >= mutations.REQUIRED


def test_every_fault_has_a_mutant_in_each_distribution(mutations: SimpleNamespace, tests: Any) -> None:
    proven = {
        (mutant.fault, mutations.distribution_of(tests.find(test)))
        for mutant in mutations.MUTANTS
        for test in mutant.tests
    }
    unproven = sorted(tests.guarded() - proven)
    assert not unproven, "add a mutant to the table: a test proves itself by failing without its cause"


def test_there_are_at_most_180_mutants(mutations: SimpleNamespace) -> None:
    # 140 for the first 59 faults; those from 60 on came later, each with about one mutant.
    assert len(mutations.MUTANTS) <= 180


def test_every_mutant_changes_the_program(mutations: SimpleNamespace, functions: Any) -> None:
    for mutant in mutations.MUTANTS:
        path, text = mutant.apply(functions)
        compile(text, path, "exec")
        assert text != ast.unparse(ast.parse(functions.texts[path])), mutant


def test_every_mutant_names_tests_of_its_number(mutations: SimpleNamespace, tests: Any) -> None:
    for mutant in mutations.MUTANTS:
        assert mutant.tests, mutant
        for test in mutant.tests:
            assert tests.find(test)
            assert mutant.fault in mutations.faults_of(test), mutant


def test_a_renamed_local_breaks_no_mutant(mutations: SimpleNamespace, functions: Any) -> None:
    for mutant in mutations.MUTANTS:
        dumps = []
        for order in ("change, rename", "rename, change"):
            _, tree, function = functions.tree(mutant.function)
            local = _locals(function)
            for step in order.split(", "):
                mutant.operator.apply(function) if step == "change" else _rename(function, local)
            dumps.append(ast.dump(tree))
        assert dumps[0] == dumps[1], mutant


def _locals(function: ast.AST) -> set[str]:
    if isinstance(function, ast.ClassDef):
        return set()
    nodes = list(ast.walk(function))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored - {node.arg for node in nodes if isinstance(node, ast.arg)}


def _rename(function: ast.AST, local: set[str]) -> None:
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in local:
            node.id += "_renamed"


# ---------------------------------------------------------------------------------------------------------- operators


def test_a_call_a_raise_or_a_condition_is_dropped(mutations: SimpleNamespace) -> None:
    assert _changed(mutations.drop_call("check")) == "pass"
    assert _changed(mutations.drop_call("guard")) == "with __import__('contextlib').nullcontext(), torch.no_grad():"
    assert _changed(mutations.drop_raise("TapError")) == "pass"
    assert _changed(mutations.fix_condition(False, "frozen")) == "if found is None or False:"
    assert _changed(mutations.fix_condition(False, "frozen", "found")) == "if False:"
    assert _changed(mutations.fix_condition(True, "mask")) == "masked = found & True"


def test_constants_calls_and_results_are_replaced(mutations: SimpleNamespace) -> None:
    assert _changed(mutations.replace_constant(0.25, 1.0)) == "return masked.sum() / 1.0"
    assert _changed(mutations.replace_return("_ * 2")) == "return masked.sum() / 0.25 * 2"
    assert _changed(mutations.replace_call("sum", "_self")) == "return masked / 0.25"
    assert _changed(mutations.replace_call("load", "_0")) == "found = policy"
    assert _changed(mutations.replace_argument("load", "strict", "not _")) == "found = load(policy, strict=not strict)"
    assert _changed(mutations.replace_argument("load", 0, "None")) == "found = load(None, strict=strict)"


def test_names_around_a_place_choose_among_several(mutations: SimpleNamespace) -> None:
    assert "'weight': 1.0" in _changed(mutations.replace_constant(0.5, 1.0, within=("log", "weight")))
    assert _changed(mutations.replace_call("mean", "1", within="loss")) == "log({'loss': 1, 'weight': 0.5})"
    assert _changed(mutations.drop_raise("TapError", within="frozen")) == "pass"


@pytest.mark.parametrize(("name", "count"), [("absent", 0), ("found", 4)])
def test_no_place_or_several_is_an_error(mutations: SimpleNamespace, name: str, count: int) -> None:
    with pytest.raises(mutations.StaleMutantError, match=f"finds {count} places instead of one"):
        mutations.fix_condition(True, name).apply(ast.parse(f"{_FUNCTION}    while found: x = 1 if found else 2"))


def test_nested_calls_of_one_name_are_several_places(mutations: SimpleNamespace) -> None:
    with pytest.raises(mutations.StaleMutantError, match="finds 2 places instead of one"):
        mutations.replace_call("all", "True").apply(ast.parse("def f(x): return x.all(1).all(0)"))


# ------------------------------------------------------------------------------------------------ functions and tests


def test_a_function_is_found_where_its_file_is_moved_to(mutations: SimpleNamespace) -> None:
    text = "class Tap:\n    def take(self): ...\n\ndef take(): ..."
    for path in (Path("sfkit/tap.py"), Path("plugins/sfkit-x/src/sfkit_x/deep/er.py")):
        functions = mutations.Functions({path: text, Path("sfkit/other.py"): "x = 1"})
        assert functions.find("Tap.take") == (path, "Tap.take")
        assert functions.find("take") == (path, "take")


def test_an_unknown_or_ambiguous_function_is_an_error(mutations: SimpleNamespace) -> None:
    functions = mutations.Functions({Path("sfkit/a/x.py"): "def f(): ...", Path("sfkit/b.py"): "def f(): ..."})
    assert functions.find("a.f") == (Path("sfkit/a/x.py"), "f")
    with pytest.raises(mutations.StaleMutantError, match=r"f may be sfkit\.a\.x\.f, sfkit\.b\.f"):
        functions.find("f")
    with pytest.raises(mutations.StaleMutantError, match=r"no C\.f in the sources\. Similar: sfkit\.a\.x\.f"):
        functions.find("C.f")


def test_a_test_is_found_by_its_name_alone(mutations: SimpleNamespace) -> None:
    here, there = Path("tests/test_a.py"), Path("plugins/sfkit-x/tests/deep/test_b.py")
    tests = mutations.Tests({
        here: "def test_fault_01_a():\ndef test_twice():", there: "def test_fault_02_and_03_b(x):\ndef test_twice():"
    })  # fmt: skip
    assert tests.find("test_fault_02_and_03_b[case::1]") == there
    assert tests.guarded() == {(1, "sfkit"), (2, "sfkit-x"), (3, "sfkit-x")}
    for name in ("test_twice", "test_absent"):
        with pytest.raises(mutations.StaleMutantError, match=f"{name} must be in one file"):
            tests.find(name)


def test_numbers_are_read_from_names(mutations: SimpleNamespace) -> None:
    names = {
        "test_fault_05_35_layer_k": (5, 35),
        "test_fault_01_and_02_taps_fire": (1, 2),
        "test_fault_26_images_outside_0_1[2.0--1.0]": (26,),
        "test_fault_4_short": (),
        "test_layer_54_of_something": (),
    }
    assert {name: mutations.faults_of(name) for name in names} == names


# ------------------------------------------------------------------------------------------------------------- trials


def test_a_mutant_is_caught_for_the_right_reason_alone(mutations: SimpleNamespace) -> None:
    test = "test_fault_01_x"
    mutant = mutations.Mutant(1, "f", mutations.drop_call("g"), test, says="dead")

    def found(*failed: tuple[str, str, str], code: int = 1, **more: list[str]) -> str:
        result = {"code": code, "failed": [(f"a.py::{case}", *rest) for case, *rest in failed], "skipped": []}
        return mutations.judge(mutant, mutant.tests, {**result, "astray": [], **more})

    assert found((f"{test}[2]", "Failed", "it is dead")) == ""
    assert "SURVIVED test_fault_01_x" in found(code=0)
    assert "SURVIVED" in found(("test_another", "AssertionError", "dead"))
    assert "another reason: NameError" in found((test, "NameError", "dead"))
    assert "without saying 'dead'" in found((test, "AssertionError", "alive"))
    assert "did not run" in found(code=4)
    assert "not the copy" in found((test, "Failed", "dead"), astray=["sfkit.views.types"])


def test_the_control_must_pass_without_a_skip(mutations: SimpleNamespace) -> None:
    nothing = {"code": 0, "failed": [], "skipped": [], "astray": []}
    judge = mutations.judge
    assert judge(None, (), nothing) == ""
    assert "t (skipped)" in judge(None, (), {**nothing, "skipped": ["t"]})
    assert judge(None, (), {**nothing, "code": 1, "failed": [("t", "AssertionError", "")]})
    assert judge(None, (), {**nothing, "code": 5})


def test_a_copy_differs_in_the_changed_file_alone(mutations: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, text in {"a": "def f():\n    return 1  # one\n", "b": "x = 2\n", "__init__": ""}.items():
        (root / "sfkit").mkdir(parents=True, exist_ok=True)
        (root / "sfkit" / f"{name}.py").write_text(text)
    for folder in ("tests", "examples"):
        (root / folder).mkdir()
    (root / "pyproject.toml").write_text("")
    bench = mutations.Bench(root, tmp_path)
    mutant = mutations.Mutant(1, "f", mutations.replace_return("None"), "test_fault_01_x")
    assert bench.prepare(tmp_path / "copy", mutant) == "sfkit.a"
    texts = {path.name: path.read_text() for path in (tmp_path / "copy" / "sfkit").glob("*.py")}
    assert texts == {"a.py": "def f():\n    return None", "b.py": "x = 2\n", "__init__.py": ""}
    assert (root / "sfkit" / "a.py").read_text().endswith("# one\n")
    assert [path.stem.partition(".")[0] for path in (tmp_path / "copy").rglob("*.pyc") if path.stem[0] == "a"] == []
