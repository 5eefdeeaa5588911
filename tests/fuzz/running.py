"""A parser under test, and what may come out of it: a value, or an error of sfkit."""

from __future__ import annotations

import logging
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sfkit.errors import SfkitError


@dataclass(frozen=True)
class Parser:
    """Something that reads what others wrote.

    Attributes:
        name: As the report lists it.
        inputs: What it is given.
        read: Gives an input to it, beside an empty folder for files.
        share: How many inputs it gets, in parts of the others'.
    """

    name: str
    inputs: st.SearchStrategy[Any] = field(repr=False)
    read: Callable[[Any, Path], object]
    share: float = 1.0


@dataclass
class Tally:
    """What became of the inputs of one parser.

    Attributes:
        accepted: How many were read.
        refused: How many ended in errors of sfkit, by their class.
        faults: Input and traceback of the others, by the error and its place; the shortest input of each.
    """

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    fault_count: int = 0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused.total() + self.fault_count


def fuzz(parser: Parser, count: int, *, seed: int | None = None, tick: Callable[[], None] = lambda: None) -> Tally:
    """Give ``count`` inputs to a parser; always the same ones if there is no seed."""
    tally, folder = Tally(), Path(tempfile.mkdtemp(prefix="sfkit-fuzz-"))
    logger = logging.getLogger("sfkit")

    @settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(parser.inputs)
    def run(value: Any) -> None:
        one = folder / "one"
        one.mkdir()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parser.read(value, one)
        except SfkitError as error:
            str(error).encode(errors="backslashreplace")
            tally.refused[type(error).__name__] += 1
        except Exception as error:
            tally.fault_count += 1
            note(tally, value, error)
        else:
            tally.accepted += 1
        finally:
            shutil.rmtree(one)
            tick()

    try:
        if seed is not None:
            from hypothesis import seed as seeded

            run = seeded(seed)(run)
        logger.disabled = True
        run()
    finally:
        logger.disabled = False
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def note(tally: Tally, value: object, error: Exception) -> None:
    """Keep the shortest input of each kind of fault."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    own = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), last)
    where = f"{own.name} ({Path(own.filename).name}:{own.lineno})"
    kind = f"{type(error).__name__} in {where}, raised by {Path(last.filename).name}: {last.name}"
    try:
        text = repr(value)
    except Exception:
        text = "an input that cannot be printed" + " " * 400
    if kind not in tally.faults or len(text) < len(tally.faults[kind][0]):
        tally.faults[kind] = (text, " ".join(f"{error}"[:300].split()))
