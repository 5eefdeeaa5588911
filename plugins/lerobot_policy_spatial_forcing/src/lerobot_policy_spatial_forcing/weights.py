"""Strict loading: every parameter of the policy comes from the checkpoint, and nothing of the checkpoint is left over.

LeRobot itself only logs or prints what is missing, and trains on from random weights.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from sfkit.errors import CheckpointError

_SHOWN = 5


class LoadRecord:
    """What ``load_state_dict`` of a policy found, also where LeRobot's ``from_pretrained`` keeps it to itself."""

    def __init__(self) -> None:
        self.ran = False
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.error = ""

    def check(self, policy: nn.Module, folder: Path) -> None:
        """Raise unless everything fitted.

        Raises:
            CheckpointError: It did not.
        """
        if self.error or not self.ran:
            raise CheckpointError(
                f"The weights of {folder} were not loaded into {type(policy).__name__}: "
                f"{self.error or 'model.safetensors is missing or unreadable'}.",
                "LeRobot would train on from random weights. Check the checkpoint and the flags that shape the policy.",
            )
        missing = _without_tied(policy, self.missing)
        if missing or self.unexpected:
            parts = [
                f"{len(keys)} {word} ({_listed(keys)})"
                for word, keys in (("missing", missing), ("unexpected", self.unexpected))
                if keys
            ]
            raise CheckpointError(
                f"The keys of {folder} are not those of {type(policy).__name__}: {', '.join(parts)}.",
                "Its config.json was read by itself: look at the flags that you gave beside it, and at its version.",
            )


def unreadable(folder: Path, error: BaseException) -> CheckpointError:
    """The error for a file that is missing, truncated or of another shape."""
    return CheckpointError(
        f"The weights of {folder} could not be loaded: {error}",
        "The file may be missing or cut off (a run that was killed while it saved: take the checkpoint before it), or "
        "a flag gives the policy another shape.",
    )


#: What loading weights fails with when the file, and not the program, is at fault.
FAILURES = (OSError, SafetensorError, RuntimeError)


def _without_tied(policy: nn.Module, missing: list[str]) -> list[str]:
    """Leave out keys whose tensor is that of another key, which was loaded."""
    state: dict[str, Tensor] = policy.state_dict()
    absent = set(missing)
    loaded = {tensor.data_ptr() for key, tensor in state.items() if key not in absent and tensor.numel()}
    return [key for key in missing if key not in state or state[key].data_ptr() not in loaded]


def _listed(keys: list[str]) -> str:
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
