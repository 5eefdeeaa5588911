"""Fast rendering: settings of robosuite's renderer, and the environments that set them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mujoco
from lerobot.envs.libero import LiberoEnv
from robosuite.utils.binding_utils import MjRenderContext

# In force where a fast environment builds its renderer: others of the process, and of its threads, stay as they are.
_FAST: ContextVar[bool] = ContextVar("lerobot_env_fast_libero", default=False)
_plain_init = MjRenderContext.__init__


def _init(context: Any, sim: Any, *args: Any, **kwargs: Any) -> None:
    fast = _FAST.get()
    if fast:  # read when the buffers are made
        sim.model._model.vis.quality.offsamples = 0
    _plain_init(context, sim, *args, **kwargs)
    if fast:
        context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0


MjRenderContext.__init__ = _init


@contextmanager
def _fast_rendering() -> Iterator[None]:
    token = _FAST.set(True)
    try:
        yield
    finally:
        _FAST.reset(token)


class FastLibero(LiberoEnv):  # type: ignore[misc]
    """LeRobot's environment of one task. Its renderer is built on first use, and anew at each hard reset."""

    def _ensure_env(self) -> None:
        with _fast_rendering():
            super()._ensure_env()

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        with _fast_rendering():
            return super().reset(*args, **kwargs)


def set_fast(env: Any) -> None:
    """Make an environment that has rendered nothing yet render fast."""
    env.unwrapped.__class__ = FastLibero


def make_fast(make: Callable[[], Any]) -> Any:
    """Call ``make``, in whatever process this is, and let its environment render fast."""
    env = make()
    set_fast(env)
    return env
