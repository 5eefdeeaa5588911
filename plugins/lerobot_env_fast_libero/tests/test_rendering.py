"""What the simulator shows, fast and plain. In a process of its own: robosuite and MuJoCo warn, and hold the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "workers" / "rendered.py"


@pytest.mark.libero
@pytest.mark.skipif(find_spec("libero") is None, reason="needs LIBERO: make libero")
def test_only_the_fast_environment_renders_fast() -> None:
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Shadows, reflections, samples of a pixel; after each of two resets, which build a new renderer.
    assert found["fast"]["settings"] == [[0, 0, 0]] * 2
    # Made in the same process, after the fast one.
    assert found["plain"]["settings"] == [[1, 1, 4]] * 2
    # In processes of their own it is the same picture, to the last bit; the plain one is another.
    assert found["parallel"]["picture"] == found["fast"]["picture"] != found["plain"]["picture"]
    # Rendering changes nothing of the simulation.
    assert found["fast"]["state"] == found["plain"]["state"]
