"""Errors, warnings and messages. An error says what happened and where; its ``remedy`` says what to do next."""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Iterable

#: Letters of a value that an error shows.
_SHOWN = 500


class SfkitError(Exception):
    """Base of all errors raised by sfkit.

    Args:
        message: What happened, and where.
        remedy: What to do next; shown after the message, and an attribute for programs.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\n  -> {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[SfkitError], tuple[str, str]]:
        # Exception's own reduce would pass the formatted text as ``message`` and lose the remedy.
        return type(self), (self.message, self.remedy)


class ConfigError(SfkitError):
    """An option is unknown, out of range or of the wrong type."""


class UnknownNameError(ConfigError):
    """No installed component of the requested kind has this name."""


class PluginError(SfkitError):
    """A plugin could not be loaded, or two plugins claim one name."""


class AdapterError(SfkitError):
    """No adapter handles this policy, or the policy differs from what its adapter expects."""


class WrapError(SfkitError):
    """The policy cannot be wrapped or unwrapped in its present state."""


class TapError(SfkitError):
    """The tap did not fire during forward, or the captured hidden state carries no gradient."""


class GradientError(SfkitError):
    """Alignment trains nothing: its gradient reaches no trainable parameter, or no optimizer holds one."""


class ShapeError(SfkitError):
    """Tensors, grids or feature widths do not fit together."""


class ViewsError(SfkitError):
    """Images or geometry for a teacher are unusable: wrong range, NaN or missing fields."""


class ComponentError(SfkitError):
    """A teacher, transform, projector or objective returned what its interface does not allow."""


class TeacherMemoryError(SfkitError):
    """A teacher ran out of memory."""


class LossError(SfkitError):
    """The alignment loss cannot be added to the output of the policy."""


class CheckpointError(SfkitError):
    """A saved projector or config is missing, damaged or does not fit."""


class TrustError(SfkitError):
    """A file sets an option that only the caller may set: permission to run code, a path, or another repository."""


class SfkitWarning(UserWarning):
    """Training works, but probably not as intended; shown once for each cause."""


def shown(value: object) -> str:
    """A value in an error: its beginning, and no error of its own where it is too deep or too long to print."""
    try:
        text = repr(value)
    except Exception:  # deeper than the interpreter's limit, of too many digits, or of a class that cannot be printed
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest candidate, or an empty string."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


logger = logging.getLogger("sfkit")


def log_info(message: str, level: int = logging.INFO) -> None:
    """Log ``message`` at a level; where logging has no handler, print it to standard error."""
    if logger.hasHandlers():
        logger.log(level, message, stacklevel=2)
    else:
        print(f"sfkit: {message}", file=sys.stderr)


log_warning = functools.partial(log_info, level=logging.WARNING)
"""As :func:`log_info`, at level WARNING."""
