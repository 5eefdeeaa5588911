"""Saves a handle again and again into one folder, beside other processes: ``saver.py FOLDER SAVES``."""

from __future__ import annotations

import sys

from sfkit import SpatialForcing
from sfkit.testing.tiny import TinyAdapter, TinyPolicy

policy = TinyPolicy()
handle = SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy), verbose=False).spatial_forcing
print("ready", flush=True)
sys.stdin.readline()
for step in range(int(sys.argv[2])):
    handle.steps = step  # type: ignore[union-attr]
    handle.save(sys.argv[1])  # type: ignore[union-attr,operator]
