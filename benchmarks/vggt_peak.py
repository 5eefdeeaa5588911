"""Measures one peak of memory of VGGT's backbone, in a process of its own, and prints it as JSON (Linux only)."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# What is freed must leave the process at once, or the next peak hides in it.
if os.environ.get("MALLOC_MMAP_THRESHOLD_") != "65536":
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch
from safetensors.torch import save_file
from sfkit_backbones.blocks import cast_products
from sfkit_backbones.memory import weight_bytes
from sfkit_backbones.randomize import randomize
from sfkit_backbones.weights import load_weights, without_weights
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import VggtConfig
from sfkit_vggt.teacher import Vggt


def write(task: dict[str, Any]) -> dict[str, Any]:
    """A file as published: the backbone, and heads of 1.38 times less beside it."""
    backbone = Aggregator(VggtConfig(**task["config"]))
    randomize(backbone)
    state = {f"aggregator.{key}": value.detach() for key, value in backbone.state_dict().items()}
    state["point_head.weight"] = torch.zeros(int(0.38 * weight_bytes(backbone) / 4))
    save_file(state, task["path"])
    return {}


def load(task: dict[str, Any]) -> dict[str, Any]:
    """Peak of loading the backbone alone from that file."""
    with without_weights():
        backbone = Aggregator(VggtConfig(**task["config"]))
    cast_products(backbone, getattr(torch, task["dtype"]))
    before = _start()
    load_weights(backbone, Path(task["path"]), prefix="aggregator.", ignored=Vggt.ignored)
    return {"peak": _peak() - before, "size": weight_bytes(backbone), "file": Path(task["path"]).stat().st_size}


@torch.inference_mode()
def run(task: dict[str, Any]) -> dict[str, Any]:
    """Peak of a forward, and what its features take."""
    with without_weights():
        backbone = Aggregator(VggtConfig(**task["config"]))
    load_weights(backbone, Path(task["path"]), prefix="aggregator.", ignored=Vggt.ignored)
    side, layers = task["side"], task["layers"]
    backbone(torch.rand(1, 1, 3, 28, 28), [1], tokens="patch")  # libraries take their buffers
    images = torch.rand(1, 2, 3, side, side)

    class Sized(Vggt):
        configs = {"full": backbone.config}  # noqa: RUF012 - for this process only

    estimate = Sized().working_bytes(backbone, (1, 2, side, side), layers)
    before = _start()
    found = backbone(images, layers, tokens="patch" if len(layers) == 1 else "all")
    return {"peak": _peak() - before, "held": sum(f.nbytes for f in found), "estimate": estimate}


def _start() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    return _read("VmRSS")


def _peak() -> int:
    return _read("VmHWM")


def _read(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps({"write": write, "load": load, "run": run}[task["what"]](task)))
