"""Load a policy and a batch through a function of the user."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sfkit.errors import ConfigError, did_you_mean

_FORM = "Write package.module:function, or path/to/file.py:function; it returns (policy, batch)."


def load_target(target: str) -> tuple[Any, ...]:
    """Call the function that a target names. The working directory is on the module search path.

    Args:
        target: ``package.module:function`` or ``path/to/file.py:function``. The function takes no arguments and returns
            the policy and a batch: the only argument of ``forward``, a mapping of its keywords, or a tuple of
            positional arguments. An adapter and a :class:`sfkit.views.cameras.CameraRig` may follow.

    Raises:
        ConfigError: The function does not exist, or returns something else. Its own errors pass through.
    """
    where, colon, name = target.rpartition(":")
    dotted = where.endswith(".py") or all(part.isidentifier() for part in where.split("."))
    if not colon or not dotted or not name:
        raise ConfigError(f"{target!r} names no function.", _FORM)
    found = _function(_module(where), name, target)()
    if not isinstance(found, tuple) or len(found) not in (2, 3, 4) or not isinstance(found[0], nn.Module):
        what = f"({', '.join(type(each).__name__ for each in found)})" if isinstance(found, tuple) else type(found)
        raise ConfigError(f"{target} returned {what}, expected (policy, batch).", "The policy is a torch.nn.Module.")
    return found


def _module(where: str) -> ModuleType:
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"There is no file {where}.", _FORM)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        sys.path.insert(0, str(path.parent.resolve()))  # as `python file.py` does
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module exists, and one of its imports does not
        raise ConfigError(f"There is no module {where!r} (looked for {error.name!r}).", _FORM) from error


def _function(module: ModuleType, name: str, target: str) -> Callable[[], object]:
    found: object = getattr(module, name, None)
    if not callable(found) or isinstance(found, nn.Module):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{target}: {module.__name__} has no function {name!r}.{did_you_mean(name, public)}", _FORM)
    return found
