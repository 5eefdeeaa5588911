"""The figures, and what they are meant to stay under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from closure import closure, defines, modules_of
from sources import Source
from step import aligned_step

LONGEST_FILE, LONGEST_FUNCTION = 350, 60


@dataclass(frozen=True)
class Figure:
    """One row.

    Attributes:
        what: What is counted.
        value: How much there is.
        limit: The goal; None where it is only reported.
        examples: Where it is too much.
        ceiling: How much there may be until the goal is met; None: the goal itself.
    """

    what: str
    value: float
    limit: float | None = None
    examples: Sequence[str] = ()
    ceiling: float | None = None

    @property
    def over(self) -> bool:
        """Whether it exceeds its goal."""
        return self.limit is not None and self.value > self.limit

    @property
    def worse(self) -> bool:
        """Whether it exceeds what is allowed until the goal is met."""
        return self.over and self.value > (self.ceiling or 0)


def figures(root: Path) -> list[Figure]:
    """All figures of a checkout."""
    core = [Source.read(file, root) for file in sorted((root / "sfkit").rglob("*.py"))]
    plugins = [Source.read(file, root) for file in sorted(root.glob("plugins/*/src/**/*.py"))]
    return [*_size(root, core), *_step(), *_reading(core, plugins)]


def _size(root: Path, core: Sequence[Source]) -> list[Figure]:
    modules = modules_of(root / "sfkit")
    reached = {modules[module] for module in closure(modules, defines(modules, "SpatialForcing"))}
    behind = [source for source in core if root / source.name in reached]
    long_files = [f"{one.name} ({one.physical_lines})" for one in core if one.physical_lines > LONGEST_FILE]
    whole = ("SpatialForcing.wrap",)
    long_functions = [name for one in core for name in one.long_functions(LONGEST_FUNCTION, whole)]
    entries = {path.name for path in (root / "sfkit").iterdir()} - {"__init__.py", "py.typed", "__pycache__"}
    return [
        Figure("lines of sfkit/", sum(one.code_lines for one in core), 6600, ceiling=7750),
        Figure("lines that SpatialForcing imports", sum(one.code_lines for one in behind), 3700, ceiling=5000),
        Figure("files of sfkit/", len(core), 85),
        Figure("entries within sfkit/", len(entries), 19),
        Figure(f"files of more than {LONGEST_FILE} lines in all", len(long_files), 0, long_files),
        Figure(f"functions of more than {LONGEST_FUNCTION} lines in all", len(long_functions), 0, long_functions),
    ]


def _step() -> list[Figure]:
    trace = aligned_step()
    return [
        Figure("one aligned step: files outside component folders", len(trace.core_files), 12),
        Figure("one aligned step: files", len(trace.files), 22),
        Figure("one aligned step: changes of file", trace.changes, 60),
        Figure("one aligned step: functions", trace.functions),
    ]


def _reading(core: Sequence[Source], plugins: Sequence[Source]) -> list[Figure]:
    both = [*core, *plugins]
    lines = sum(one.physical_lines for one in both)
    found = [
        Figure("Any, in 1000 lines of core and plugins", round(1000 * sum(one.anys for one in both) / lines, 1), 12),
        Figure(
            "comments, in 1000 lines of core and plugins", round(1000 * sum(one.comments for one in both) / lines, 1)
        ),
    ]
    for name, sources in (("core", core), ("plugins", plugins)):
        taking = [pair for one in sources for pair in one.functions_of_tensors()]
        silent = [function for function, states in taking if not states]
        what = f"functions of tensors that state no shape, of {len(taking)} in the {name}"
        found.append(Figure(what, len(silent), 0, silent[:3]))
    return found
