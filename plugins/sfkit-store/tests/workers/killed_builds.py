"""Builds a store in a fork for each folder that it is sent, says which process does, and when it was killed."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import conftest

torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        conftest.build(Path(line.strip()), conftest.Frames(24))
        signal.pause()
    print(child, flush=True)
    os.waitpid(child, 0)
    print("killed", flush=True)
