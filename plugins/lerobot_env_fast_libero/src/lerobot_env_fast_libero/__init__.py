"""The environment type ``fast_libero`` of LeRobot: ``libero`` without shadows, reflections and multisampling.

LeRobot imports this module by itself, in each of its commands, so nothing of LIBERO is imported before an environment
is made. Groups of results are called ``<suite>_fast_rendering``: what was rendered otherwise cannot be taken for the
benchmark's own picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from lerobot.envs.configs import EnvConfig, LiberoEnv

__all__ = ["MARK", "FastLiberoEnv"]

#: Ends the name of each group of results.
MARK = "_fast_rendering"


@EnvConfig.register_subclass("fast_libero")
@dataclass
class FastLiberoEnv(LiberoEnv):  # type: ignore[misc]
    """Configuration of ``--env.type=fast_libero``; all of its fields are those of ``libero``."""

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """LeRobot's environments of each suite and task, each set to render fast where it lives.

        Raises:
            RuntimeError: LeRobot keeps its environments otherwise than this version knows.
        """
        from lerobot_env_fast_libero.rendering import make_fast, set_fast

        suites = super().create_envs(n_envs, use_async_envs)
        for vector in (vector for tasks in suites.values() for vector in tasks.values()):
            if hasattr(vector, "envs"):
                for env in vector.envs:
                    set_fast(env)
            elif hasattr(vector, "_env_fns"):  # made later, in processes of their own
                vector._env_fns = [partial(make_fast, make) for make in vector._env_fns]
            else:
                raise RuntimeError(
                    f"fast_libero cannot reach the environments in LeRobot's {type(vector).__name__}: "
                    "use --env.type=libero, or LeRobot 0.6.1."
                )
        return {f"{suite}{MARK}": tasks for suite, tasks in suites.items()}
