"""Build one task, look at it, and time its steps, in a process of its own.

A renderer that fails may take its process with it, and LIBERO may ask questions: neither can happen here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sfkit_libero import LiberoError

_STEPS = 20


@dataclass(frozen=True)
class Timing:
    """Seconds of a task: to build and reset it, for each step on the clock, and for each step of all processors."""

    build: float
    step: float
    cpu: float


def time_frames(image: Path, env_type: str = "libero", seconds: float = 900) -> Timing:
    """Render the first task of LIBERO-spatial, save what both cameras see, and return the times.

    Args:
        image: Where to write the picture (PNG).
        env_type: LeRobot's name of the environment, ``libero`` or ``fast_libero``.
        seconds: After which to give up.

    Raises:
        LiberoError: The simulator failed; with its last line.
    """
    command = [sys.executable, "-m", "sfkit_libero.frame", str(image), env_type]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise LiberoError(f"The simulator gave no frame in {seconds:.0f} s.", "Is the machine busy?") from error
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        # What comes after are destructors, which miss what was never built.
        main = done.stderr.partition("\nException ignored")[0]
        said = [line.strip() for line in main.splitlines() if line.strip()]
        last = said[-1] if said else f"exit status {done.returncode}"
        raise LiberoError(f"The simulator failed: {last}", f"Its whole output: {' '.join(command)}")
    return Timing(**json.loads(lines[-1]))


def _main(image: str, env_type: str) -> None:
    import numpy as np
    from lerobot.envs.factory import make_env, make_env_config
    from lerobot.utils.import_utils import register_third_party_plugins
    from PIL import Image

    register_third_party_plugins()
    start = time.perf_counter()
    (tasks,) = make_env(make_env_config(env_type, task="libero_spatial", task_ids=[0])).values()
    tasks[0].reset(seed=0)
    built, clock, cpu = time.perf_counter() - start, time.perf_counter(), time.process_time()
    for _ in range(_STEPS):
        seen = tasks[0].step(np.array([[0, 0, 0, 0, 0, 0, -1]], np.float32))[0]["pixels"]
    times = (time.perf_counter() - clock) / _STEPS, (time.process_time() - cpu) / _STEPS
    # As the policy sees them: LeRobot turns them by 180 degrees.
    Image.fromarray(np.concatenate([picture[0, ::-1, ::-1] for picture in seen.values()], axis=1)).save(image)
    tasks[0].close()
    print(json.dumps(asdict(Timing(built, *times))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
