"""``sfkit demo``: a small policy trained twice from one seed, plain and aligned, and an honest comparison.

The recording that it trains on is part of the package, as is the study over five seeds that its report shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfkit import hookimpl

SFKIT_API = 1

_HERE = Path(__file__).parent

#: The recording: a LeRobot dataset of three Meta-World tasks, with depth, calibration, poses and labels for probes.
RECORDING = _HERE / "recording"

#: Results of the study over five seeds, one row for each seed and arm; ``curves.csv`` beside it has its curves.
STUDY = _HERE / "seeds" / "results.csv"


@hookimpl
def register_commands(register: Callable[..., Any]) -> None:
    register(
        "sfkit_demo.cli:demo",
        name="demo",
        summary="train a small policy with and without alignment, and compare",
    )
