"""All that depends on LeRobot's version, in one place."""

from __future__ import annotations

import functools
import inspect
import os
import re
import warnings
from importlib.metadata import version
from typing import Any

import torch

from sfkit.errors import SfkitWarning, WrapError

#: Versions that the tests have run against.
TESTED = ("0.6.1",)


@functools.cache
def warn_of_unknown_version() -> None:
    """Warn once about a newer LeRobot than any that was tested."""
    found = version("lerobot")
    if _ordered(found) > _ordered(TESTED[-1]):
        message = f"sfkit: LeRobot {found} is newer than what was tested ({TESTED[-1]}). It is used as it is."
        warnings.warn(message, SfkitWarning, stacklevel=2)


@functools.cache
def warn_of_single_process() -> None:
    """Warn once where ``accelerate launch`` was asked for several processes and has started one, as on CPUs it does."""
    asked = _asked_for()
    if asked > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        message = (
            f"sfkit: accelerate launch was asked for {asked} processes and has started one, as it does on CPUs. Use "
            f"ACCELERATE_USE_CPU=true torchrun --nproc-per-node={asked} $(which lerobot-train) ..."
        )
        warnings.warn(message, SfkitWarning, stacklevel=2)


def _asked_for() -> int:
    """``--num_processes`` of the ``accelerate launch`` that has started this process; 0 where there is none."""
    import psutil  # type: ignore[import-untyped]

    try:
        command = " ".join(psutil.Process().parent().cmdline())
    except (psutil.Error, AttributeError):
        return 0
    found = re.search(r"accelerate\S* (?:.* )?launch\b.* --num[_-]processes[ =](\d+)", command)
    return int(found[1]) if found else 0


def refuse_fsdp() -> None:
    """Refuse fully sharded training where it cannot work.

    Raises:
        WrapError: FSDP2 with a trainer that calls ``policy.forward`` directly or in mixed precision, or the older FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1", "yes"):
        return
    plugin = _fsdp_plugin()
    asked_for = int(os.environ.get("FSDP_VERSION", "1")) if plugin is None else plugin.fsdp_version
    if asked_for != 2:
        raise WrapError(
            "Spatial forcing does not run under FSDP 1, which flattens the projector into its shards.",
            "Use DDP, or FSDP2 (fsdp_version: 2) with a LeRobot whose trainer supports it.",
        )
    if trainer_calls_forward():
        raise WrapError(
            f"The trainer of LeRobot {version('lerobot')} calls policy.forward(batch), past the hooks by which FSDP2 "
            "gathers parameters.",
            "Use DDP (torchrun --nproc-per-node=N), or a LeRobot whose trainer calls policy(batch).",
        )
    precision = getattr(getattr(plugin, "mixed_precision_policy", None), "param_dtype", None)
    if precision not in (None, torch.float32):
        raise WrapError(
            f"FSDP2 in mixed precision makes {str(precision).removeprefix('torch.')} of the batch's depth and of the "
            "projector.",
            "Use FSDP2 with --accelerator.mixed_precision=no, or DDP, under which both stay in float32.",
        )


def _fsdp_plugin() -> Any:
    """Accelerate's FSDP settings, if there are any; they name the version where no environment variable does."""
    from accelerate.state import AcceleratorState

    return AcceleratorState._shared_state.get("fsdp_plugin")


@functools.cache
def trainer_calls_forward() -> bool:
    """Whether LeRobot's trainer calls ``policy.forward(batch)`` (0.6.1) and not ``policy(batch)``."""
    try:
        from lerobot.scripts import lerobot_train

        return "policy.forward(batch" in inspect.getsource(lerobot_train.update_policy)
    except (ImportError, AttributeError, OSError):
        return False  # of a newer version it is not known


def _ordered(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
