"""Which files of a package one call runs through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

#: Folders of components: a step runs through the files of those that were chosen.
COMPONENTS = ("teachers", "policies", "objectives", "projectors", "transforms", "schedules", "presets")


@dataclass(frozen=True)
class Trace:
    """The calls of one run, in order.

    Attributes:
        calls: File and name of each function that was called.
    """

    calls: Sequence[tuple[str, str]]

    @property
    def files(self) -> set[str]:
        """The files that were run."""
        return {file for file, _ in self.calls}

    @property
    def core_files(self) -> set[str]:
        """Those outside the folders of components."""
        return {file for file in self.files if file.partition("/")[0] not in COMPONENTS}

    @property
    def functions(self) -> int:
        """How many functions were run."""
        return len(set(self.calls))

    @property
    def changes(self) -> int:
        """How often a call is in another file than the call before it."""
        return sum(before != after for (before, _), (after, _) in pairwise(self.calls))


def trace(run: Callable[[], object], folder: Path, without: str = "testing/") -> Trace:
    """Run something and note each call of a Python function under ``folder``, hooks included."""
    calls: list[tuple[str, str]] = []
    prefix = f"{folder.resolve()}/"

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            file = code.co_filename.removeprefix(prefix)
            if not file.startswith(without):
                calls.append((file, f"{code.co_qualname}:{code.co_firstlineno}"))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return Trace(calls)


def aligned_step() -> Trace:
    """Step 10 of a tiny policy with the geometry teacher, forward and backward; nothing is measured in it."""
    import torch

    import sfkit
    from sfkit import SpatialForcing
    from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch

    torch.manual_seed(0)
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    optimizer = torch.optim.AdamW(policy.parameters())
    batch = tiny_batch()

    def step() -> None:
        policy(batch)[0].backward()

    for _ in range(10):
        step()
        optimizer.step()
        optimizer.zero_grad()
    return trace(step, Path(str(sfkit.__file__)).parent)
