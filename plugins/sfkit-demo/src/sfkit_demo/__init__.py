"""``sfkit demo``: train a small policy twice from one seed, plain and aligned, and compare on held-out episodes.

The package contains the recording for training, and the results over five seeds for the report.
"""

from __future__ import annotations

from pathlib import Path

from sfkit.registry.hookspecs import Register, hookimpl

SFKIT_API = 1

_HERE = Path(__file__).parent

#: The recording: a LeRobot dataset of three Meta-World tasks, with depth, calibration, poses and labels for probes.
RECORDING = _HERE / "recording"

#: Results of the study over five seeds, one row for each seed and arm; ``curves.csv`` beside it has its curves.
STUDY = _HERE / "seeds" / "results.csv"


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "sfkit_demo.cli:demo",
        name="demo",
        summary="train a small policy with and without alignment, and compare",
    )
