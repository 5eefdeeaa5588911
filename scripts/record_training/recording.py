"""Runs cases, and writes down what each of them has computed."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import platform
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkout import check_modules
from torch import Tensor, nn

from sfkit import SpatialForcing

#: Modules with cases. Each runs in a process of its own, so that no case depends on how the others are shared out.
MODULES = ("cases_lerobot", "cases_core", "cases_ranks", "cases_standins")
#: What the handle reports of a step; other names may change, and everything else shows in the gradients.
FIGURES = ("action_loss", "sf_loss", "sf_cosine")


@dataclass
class Training:
    """A wrapped policy and its loop.

    Attributes:
        policy: What was wrapped.
        loss: The loss ``()`` of a step, on which the loop goes backward.
        beside: Modules that the loop trains beside the policy.
        accumulate: Steps for each step of the optimizer.
    """

    policy: nn.Module
    loss: Callable[[int], Tensor]
    beside: Sequence[nn.Module] = ()
    accumulate: int = 1


def record_case(make: Callable[[], Training], steps: int) -> dict[str, Any]:
    """Train for some steps: losses, gradients, the order of parameters, and what they are in the end."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    training = make()
    named = [pair for module in (training.policy, *training.beside) for pair in module.named_parameters()]
    parameters = [parameter for _, parameter in named]
    found: dict[str, Any] = {"names": [name for name, _ in named], "initial": _summaries(parameters), "steps": []}
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-3)
    handle: Any = SpatialForcing.of(training.policy)
    for step in range(steps):
        loss = training.loss(step)
        loss.backward()
        metrics = handle.metrics()
        figures = {name: metrics.get(name) for name in FIGURES}
        gradients = _summaries([parameter.grad for parameter in parameters])
        found["steps"].append({"loss": loss.item(), **figures, "gradients": gradients})
        if (step + 1) % training.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    own = {id(buffer) for buffer in handle.buffers()}
    buffers = [buffer for buffer in training.policy.buffers() if id(buffer) not in own]
    found |= {"final": _summaries(parameters), "buffers": _summaries(buffers)}
    found["random numbers"] = _digest(torch.get_rng_state())
    return found


def _summaries(tensors: Sequence[Tensor | None]) -> list[tuple[str, float] | None]:
    """Digest and norm of each."""
    return [
        None if one is None else (_digest(one), float(torch.linalg.vector_norm(one.detach().double())))
        for one in tensors
    ]


def _digest(tensor: Tensor) -> str:
    found = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def record_module(module: str, names: Sequence[str], root: Path, steps: int) -> dict[str, Any]:
    """Record some cases of one module."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = importlib.import_module(module)
    found: dict[str, Any] = getattr(cases, "record", _record)(names, cases.CASES, steps)
    check_modules(root)
    return found


def _record(names: Sequence[str], cases: Any, steps: int) -> dict[str, Any]:
    return {name: timed(name, lambda name=name: record_case(cases[name], steps)) for name in names}


def timed(name: str, record: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a case gives, or the error that stopped it; on stderr what it took of the processor."""
    start = time.process_time()
    try:
        found, said = record(), ""
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        found = {"error": said}
    print(f"  {name:32} {time.process_time() - start:5.1f} s  {said}", file=sys.stderr, flush=True)
    return found


def record_cases(root: Path, file: Path, patterns: Sequence[str], steps: int, jobs: int) -> int:
    """Record the cases of this folder with the packages of ``root``; 1 if one of them failed."""
    start, cases, running = time.monotonic(), {}, []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for module in MODULES:
            known = importlib.import_module(module).CASES
            names = [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]
            if names:
                running.append(pool.submit(record_module, module, names, root, steps))
        for one in running:
            cases |= one.result()
    conditions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    file.write_text(json.dumps({"conditions": conditions | {"steps": steps}, "cases": cases}))
    failed = [name for name, found in cases.items() if "error" in found]
    print(f"{len(cases)} cases in {time.monotonic() - start:.0f} s, {len(failed)} failed", file=sys.stderr)
    return 1 if failed or not cases else 0
