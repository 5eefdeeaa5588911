"""The metrics count what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]
TEXT = '''"""Of the module,

in three lines.
"""

from typing import Any

# Why this is so.
LIMIT: Any = 1  # a word behind code

TEXT = """two
lines"""


class Thing:
    """Of the class."""

    def method(self, tokens: Tensor, *, other: Any = None) -> Any:  # type: ignore[no-any-return]
        """Take tokens ``(b, n, d)``."""

        def inner(mask: Tensor | None) -> None:
            # fmt: off
            return (
                mask

            )

        return inner
'''


def test_lines_are_those_with_code(load: Load) -> None:
    source = load("metrics/sources").Source(TEXT)
    # import, LIMIT, TEXT (2), class, def, def, return ( mask ), return
    assert source.code_lines == 11
    assert source.physical_lines == len(TEXT.splitlines())


def test_comments_are_lines_for_a_reader(load: Load) -> None:
    assert load("metrics/sources").Source(TEXT).comments == 1


def test_any_is_counted_where_it_is_used(load: Load) -> None:
    assert load("metrics/sources").Source(TEXT).anys == 3
    assert load("metrics/sources").Source("from typing import (\n    Any,\n)\n").anys == 0


def test_functions_of_tensors_state_a_shape_or_not(load: Load) -> None:
    found = load("metrics/sources").Source(TEXT, "a.py").functions_of_tensors()
    assert found == [("a.py:Thing.method", True), ("a.py:Thing.method.inner", False)]


@pytest.mark.parametrize(
    ("docstring", "states"),
    [
        ("Images ``(b, v, 3, h, w)`` in [0, 1].", True),
        ("A loss ``()``.", True),
        ("One value for each sample ``(b,)``.", True),
        ("Tokens ``(..., n, heads * d)``.", True),
        ("Call ``f(x)`` on the tokens.", False),
        ('Pass ``True`` or ``"mean"``.', False),
        ("Shapes are not stated (b, n).", False),
    ],
)
def test_a_shape_stands_in_double_backticks(load: Load, docstring: str, states: bool) -> None:
    text = f"def f(x: torch.Tensor) -> None:\n    '''{docstring}'''\n"
    assert load("metrics/sources").Source(text).functions_of_tensors() == [(":f", states)]


def test_long_functions_are_named_with_their_lines(load: Load) -> None:
    body = "\n".join(["        x = 1"] * 5)
    text = f'class C:\n    def m(\n        self,\n    ):\n        """Two\n        lines."""\n{body}\n'
    source = load("metrics/sources").Source(text, "a.py")
    assert source.long_functions(9) == ["a.py:C.m (10)"]
    assert source.long_functions(10) == []
    assert source.long_functions(5, ("C.m",)) == []
    assert source.long_functions(4, ("C.m",)) == ["a.py:C.m (5)"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "main.py": "from pkg.sub import leaf\n\nclass Main:\n    def f(self):\n        import pkg.lazy\n",
        "lazy.py": "from . import sibling\n",
        "sibling.py": "if TYPE_CHECKING:\n    import pkg.typed\nelse:\n    from .deep.down import x\n",
        "typed.py": "",
        "alone.py": "import pkg.main\n",
        "sub/__init__.py": "",
        "sub/leaf.py": "import torch\n",
        "deep/__init__.py": "from .other import y\n",
        "deep/down.py": "from ..sub import leaf\n",
        "deep/other.py": "",
    }
    for name, text in files.items():
        file = tmp_path / "pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "pkg"


def test_the_closure_follows_imports_within_functions(load: Load, package: Path) -> None:
    closure = load("metrics/closure")
    modules = closure.modules_of(package)
    assert closure.defines(modules, "Main") == "pkg.main"
    assert closure.closure(modules, "pkg.main") == set(modules) - {"pkg.typed", "pkg.alone"}
    with pytest.raises(LookupError):
        closure.defines(modules, "Nobody")


def test_a_trace_counts_files_and_changes_of_file(load: Load, tmp_path: Path) -> None:
    calls: dict[str, Callable[..., object]] = {}
    for name in ("one.py", "teachers/two.py", "testing/three.py"):
        code = compile("def call(*inner):\n    for f in inner: f()\n", str(tmp_path / name), "exec")
        space: dict[str, Callable[..., object]] = {}
        exec(code, space)
        calls[name] = space["call"]
    one, two, three = calls.values()
    trace = load("metrics/step").trace(lambda: one(two, lambda: one(three, one), two), tmp_path)
    assert trace.files == {"one.py", "teachers/two.py"}
    assert trace.core_files == {"one.py"}
    assert trace.functions == 2
    # one two one one two
    assert (len(trace.calls), trace.changes) == (5, 3)


def test_a_figure_is_over_its_limit_or_has_none(load: Load) -> None:
    figure = load("metrics/figures").Figure
    assert [figure("", 3, limit).over for limit in (2, 3, None)] == [True, False, False]


def test_a_figure_over_its_goal_may_not_pass_its_ceiling(load: Load) -> None:
    figure = load("metrics/figures").Figure
    assert [figure("", 5, 2, ceiling=ceiling).worse for ceiling in (None, 4, 5, 6)] == [True, True, False, False]
    assert not figure("", 2, 2).worse
    assert not figure("", 9).worse
