"""Trying one mutant: a copy of the sources with its change, and its tests in a process of their own.

The process is forked from one that has imported torch (and LeRobot) but nothing of sfkit, so that a trial takes as long
as its tests and not as long as those imports.
"""

from __future__ import annotations

import compileall
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mutant import Mutant
from operators import StaleMutantError
from sources import Functions, Tests, module_of, packages

#: How a test fails that noticed: a failed assertion, or an expected error or warning that did not come.
_NOTICED = ("AssertionError", "Failed")
#: Seconds after which a trial hangs for sure, even on a busy machine.
_LIMIT = 600.0


@dataclass(frozen=True)
class Outcome:
    """What came of a trial; ``problem`` is empty when all was as it must be."""

    seconds: float
    problem: str = ""
    detail: str = ""


@dataclass(eq=False)  # a plugin of pytest must be hashable
class Recorder:
    """A pytest plugin that notes how each case ended."""

    passed: list[str] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        """Note the case's end; a failing fixture counts as a failing test."""
        report = yield
        if report.failed:
            kind = call.excinfo.typename if call.excinfo is not None else "unknown"
            self.failed.append((item.nodeid, kind, str(report.longrepr)))
        elif report.skipped:
            self.skipped.append(item.nodeid)
        elif report.when == "call":
            self.passed.append(item.nodeid)
        return report


class Bench:
    """What all trials share: the repository, its index, and a compiled copy of it.

    Args:
        root: The repository.
        folder: Where the copies go.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self.functions = Functions.of(root)
        self.tests = Tests.of(root)
        self.packages = frozenset(package.name for package in packages(root))
        self._original = folder / "original"
        copy_sources(root, self._original)
        for package in packages(self._original):
            compileall.compile_dir(package, quiet=1)

    def prepare(self, folder: Path, mutant: Mutant | None) -> str:
        """Make a copy with the change of a mutant; returns the name of the changed module, or an empty string.

        Raises:
            StaleMutantError: The change no longer applies.
        """
        change = None if mutant is None else mutant.apply(self.functions)
        # Links: nothing writes into a copy, save what follows.
        shutil.copytree(self._original, folder, copy_function=os.link, symlinks=True)
        if change is None:
            return ""
        path, text = change
        (folder / path).unlink()
        (folder / path).write_text(text, encoding="utf-8")
        for compiled in (folder / path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        return module_of(path)

    def node(self, test: str) -> str:
        """What pytest calls a test.

        Raises:
            StaleMutantError: There is none of that name, or there are several.
        """
        return f"{self.tests.find(test).as_posix()}::{test}"


class Trial:
    """A running trial. Without a mutant it is the control: all of its tests must pass."""

    def __init__(self, bench: Bench, tests: Sequence[str], mutant: Mutant | None) -> None:
        self.mutant = mutant
        self.folder = Path(tempfile.mkdtemp(dir=bench.folder))
        self._tests = tests
        self._start = time.monotonic()
        self._pid = 0
        self._stale = ""
        try:
            module = bench.prepare(self.folder / "copy", mutant)
            nodes = [bench.node(test) for test in tests]
        except StaleMutantError as error:
            self._stale = str(error)
            return
        loaded = [name for name in sys.modules if name.partition(".")[0] in bench.packages]
        assert not loaded, f"{loaded} must not be imported before the fork: the changed copy would not be"
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            _run_and_exit(self.folder, nodes, module, bench.packages)

    def poll(self) -> Outcome | None:
        """The outcome, or None while the tests run."""
        seconds = time.monotonic() - self._start
        if self._stale:
            return Outcome(seconds, "does not apply", self._stale)
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            if seconds < _LIMIT:
                return None
            self.kill()
            return Outcome(seconds, f"no end after {_LIMIT:.0f} s", self._log())
        result = self.folder / "result.json"
        if status or not result.is_file():
            return Outcome(seconds, f"the process ended with status {status}", self._log())
        problem = judge(self.mutant, self._tests, json.loads(result.read_text()))
        return Outcome(seconds, problem, self._log() if problem else "")

    def kill(self) -> None:
        """End the process and what it has started."""
        if not self._pid:
            return
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not become the leader of its group yet
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _log(self) -> str:
        log = self.folder / "log.txt"
        return log.read_text(errors="replace")[-6000:] if log.is_file() else ""


def judge(mutant: Mutant | None, tests: Sequence[str], result: dict[str, Any]) -> str:
    """What is wrong with the result of a trial; empty when nothing is."""
    if result["astray"]:
        return f"not the copy was imported: {', '.join(result['astray'])}"
    # Tests are known by their name, pytest's by file and name.
    found = [(case.rpartition("::")[2], kind, report) for case, kind, report in result["failed"]]
    if mutant is None:
        bad = sorted(case for case, _, _ in found) + [f"{case} (skipped)" for case in result["skipped"]]
        if not bad and not result["code"]:
            return ""
        return f"without any mutant: {', '.join(bad) or 'pytest ended with ' + str(result['code'])}"
    if result["code"] not in (0, 1):
        return f"pytest ended with {result['code']}: the tests did not run"
    failed = {case for case, _, _ in found} | {case.partition("[")[0] for case, _, _ in found}
    if survived := [test for test in tests if test not in failed]:
        return f"SURVIVED {', '.join(survived)}"
    for case, kind, report in found:
        if kind not in (*_NOTICED, *mutant.ends_in):
            return f"{case} failed for another reason: {kind}"
        if mutant.says not in report:
            return f"{case} failed without saying {mutant.says!r}"
    return ""


def copy_sources(root: Path, to: Path) -> None:
    """Copy what the tests need: the packages, the tests and the settings of pytest."""
    ignore = shutil.ignore_patterns("__pycache__", "mutations", "*.pyc")
    plugins = [path.relative_to(root) for path in (*root.glob("plugins/*/src"), *root.glob("plugins/*/tests"))]
    for part in (Path("sfkit"), Path("tests"), *plugins):
        shutil.copytree(root / part, to / part, ignore=ignore)
    for file in (root / "pyproject.toml", *root.glob("plugins/conftest.py")):
        shutil.copy(file, to / file.relative_to(root))
    (to / "examples").symlink_to(root / "examples")


def _run_and_exit(folder: Path, nodes: Sequence[str], module: str, ours: Collection[str]) -> NoReturn:
    """In the forked process."""
    status = 1
    try:
        os.setsid()
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        result = _run(folder, nodes, module, ours)
        (folder / "result.json").write_text(json.dumps(result))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(folder: Path, nodes: Sequence[str], module: str, ours: Collection[str]) -> dict[str, Any]:
    copy = (folder / "copy").resolve()
    os.chdir(copy)
    first = [str(copy), *map(str, copy.glob("plugins/*/src"))]
    # Ahead of the editable installation, which is on sys.path too; also for the processes that tests start.
    sys.path[:0] = first
    os.environ["PYTHONPATH"] = os.pathsep.join(first)
    # Copies share their bytecode files: none is to be written.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    recorder = Recorder()
    options = ["-c", "pyproject.toml", "--rootdir", ".", "--basetemp", str(folder / "temporary"), "--tb=short", "-q"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
    # Modules imported before the fork are no test modules.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*options, *nodes], plugins=[recorder]))
    return {
        "code": code,
        "passed": recorder.passed,
        "failed": recorder.failed,
        "skipped": recorder.skipped,
        "astray": _astray(copy, module, ours),
    }


def _astray(copy: Path, module: str, ours: Collection[str]) -> list[str]:
    """Modules of ours that do not come from the copy, the changed one above all."""
    if module:
        # One that only a process started by a test has imported is found as that process finds it.
        importlib.import_module(module)
    files = {
        name: Path(loaded.__file__).resolve()
        for name, loaded in list(sys.modules.items())
        if name.partition(".")[0] in ours and getattr(loaded, "__file__", None)
    }
    return [name for name, path in files.items() if not path.is_relative_to(copy)]
