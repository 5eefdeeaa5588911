"""Trying one mutant: a copy of the sources with its edits, and its tests in a process of their own.

The process is forked from one that has imported torch (and LeRobot) but nothing of sfkit, so that a trial takes as long
as its tests and not as long as those imports.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mutant import Mutant, StaleMutantError, function_of

PACKAGES = (
    *("sfkit", "sfkit_lerobot", "sfkit_openpi", "sfkit_openvla", "lerobot_policy_spatial_forcing"),
    *("sfkit_depth_anything", "sfkit_dust3r", "sfkit_transformers", "sfkit_vggt"),
)
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


class Trial:
    """A running trial. Without a mutant it is the control: all of its tests must pass."""

    def __init__(self, root: Path, folder: Path, tests: Sequence[str], mutant: Mutant | None) -> None:
        self.mutant = mutant
        self.folder = folder
        self._tests = tests
        self._start = time.monotonic()
        self._pid = 0
        self._stale = ""
        copy_sources(root, folder / "copy")
        try:
            if mutant is not None:
                mutant.apply(folder / "copy")
        except StaleMutantError as error:
            self._stale = str(error)
            return
        loaded = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
        assert not loaded, f"{loaded} must not be imported before the fork: the mutated copy would not be"
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            _run_and_exit(folder, tests, mutant)

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
    failed = {function_of(case) for case, _, _ in result["failed"]} | {case for case, _, _ in result["failed"]}
    if mutant is None:
        bad = sorted(case for case, _, _ in result["failed"]) + [f"{case} (skipped)" for case in result["skipped"]]
        if not bad and not result["code"]:
            return ""
        return f"without any mutant: {', '.join(bad) or 'pytest ended with ' + str(result['code'])}"
    if result["code"] not in (0, 1):
        return f"pytest ended with {result['code']}: the tests did not run"
    if survived := [test for test in tests if test not in failed]:
        return f"SURVIVED {', '.join(survived)}"
    for case, kind, report in result["failed"]:
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
    shutil.copy(root / "pyproject.toml", to)
    (to / "examples").symlink_to(root / "examples")


def _run_and_exit(folder: Path, tests: Sequence[str], mutant: Mutant | None) -> NoReturn:
    """In the forked process."""
    status = 1
    try:
        os.setsid()
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        result = _run(folder, tests, mutant)
        (folder / "result.json").write_text(json.dumps(result))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(folder: Path, tests: Sequence[str], mutant: Mutant | None) -> dict[str, Any]:
    copy = (folder / "copy").resolve()
    os.chdir(copy)
    first = [str(copy), *map(str, copy.glob("plugins/*/src"))]
    # Ahead of the editable installation, which is on sys.path too; also for the processes that tests start.
    sys.path[:0] = first
    os.environ["PYTHONPATH"] = os.pathsep.join(first)
    # A stale bytecode file has the size and the second of its source: none is to be written.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    recorder = Recorder()
    options = ["-c", "pyproject.toml", "--rootdir", ".", "--basetemp", str(folder / "temporary"), "--tb=short", "-q"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov"]
    # Modules imported before the fork are no test modules.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*options, *tests], plugins=[recorder]))
    return {
        "code": code,
        "passed": recorder.passed,
        "failed": recorder.failed,
        "skipped": recorder.skipped,
        "astray": _astray(copy, mutant),
    }


def _astray(copy: Path, mutant: Mutant | None) -> list[str]:
    """Modules of ours that do not come from the copy, those of the edited files above all."""
    for edit in mutant.edits if mutant is not None else ():
        # Those that only a process started by a test has imported are found as that process finds them.
        importlib.import_module(_module_of(edit.file))
    files = {
        name: Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in PACKAGES and getattr(module, "__file__", None)
    }
    return [name for name, path in files.items() if not path.is_relative_to(copy)]


def _module_of(file: str) -> str:
    return file.rpartition("src/")[2].removesuffix(".py").replace("/", ".").removesuffix(".__init__")
