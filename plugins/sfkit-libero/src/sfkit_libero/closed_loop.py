"""LeRobot's own evaluation, watched: does the policy fit, does an episode end, how long does a step take?

``lerobot-eval`` prints a percentage. 30 % of ten episodes are 11 to 60 %, which is what :func:`interval` says.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from sfkit_libero import LiberoError
from sfkit_libero.setup import check_ready

#: robosuite ends an episode of LIBERO there, whatever it is asked for.
_HORIZON = 1000
#: Position, axis and angle of the gripper, and its two fingers: what LeRobot makes of LIBERO's state.
_STATE = 8


@dataclass
class ClosedLoop:
    """What an evaluation gave.

    Attributes:
        successes: For each group (``libero_spatial``) and number of a task, whether each episode succeeded.
        steps: Steps of the simulator, of all environments that ran side by side.
        seconds: Of these steps on the clock, with the policy's part.
        cpu: The same in seconds of all processors, of this process.
        reset: Seconds of the resets.
    """

    successes: dict[tuple[str, int], list[bool]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    reset: float = 0.0

    def report(self) -> str:
        """One line for each task, one for all, and one for the time."""
        lines = [f"{group}, task {task}: {_rate(found)}" for (group, task), found in self.successes.items()]
        if len(lines) > 1:
            lines.append(f"all: {_rate([one for found in self.successes.values() for one in found])}")
        steps = max(self.steps, 1)
        lines.append(
            f"{self.steps} steps: {self.seconds / steps:.3f} s and {self.cpu / steps:.3f} CPU-seconds a step, policy "
            f"included; {self.reset:.0f} s of resets"
        )
        return "\n".join(lines)


def interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's score interval of a success rate, at 95 % (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    from scipy.stats import binomtest

    found = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _rate(found: Sequence[bool]) -> str:
    low, high = interval(sum(found), len(found))
    return (
        f"{sum(found)} of {len(found)} episodes succeed: {sum(found) / len(found):.0%} "
        f"(95 % Wilson interval {low:.0%} to {high:.0%})"
    )


def evaluate(flags: Sequence[str], episode_seconds: float = 3600) -> ClosedLoop:
    """Run ``lerobot-eval`` in this process.

    Args:
        flags: Those of ``lerobot-eval``.
        episode_seconds: How long an episode may take on the clock.

    Returns:
        The successes and the times.

    Raises:
        LiberoError: LIBERO is not ready, policy and environment do not fit, an episode takes too long, or an action is
            not finite.
    """
    try:
        from lerobot.scripts import lerobot_eval
    except ImportError as error:
        raise LiberoError(f"lerobot-eval cannot be imported: {error}.", "sfkit libero setup --install") from error
    result = ClosedLoop()
    with ExitStack() as stack:
        for name, around in (("make_env", _ready), ("make_policy", _fitting)):
            stack.enter_context(patch.object(lerobot_eval, name, around(getattr(lerobot_eval, name))))
        watched = _watched(lerobot_eval.rollout, result, episode_seconds)
        stack.enter_context(patch.object(lerobot_eval, "rollout", watched))
        kept = _kept(lerobot_eval.eval_policy_all, result)
        stack.enter_context(patch.object(lerobot_eval, "eval_policy_all", kept))
        stack.enter_context(patch.object(sys, "argv", ["lerobot-eval", *flags]))
        lerobot_eval.main()
    return result


def _ready(make: Callable[..., Any]) -> Callable[..., Any]:
    def checked(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if is_libero(cfg):
            check_ready()
            check_length(cfg.episode_length)
        return make(cfg, *args, **kwargs)

    return checked


def _fitting(make: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*, cfg: Any, env_cfg: Any, rename_map: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        from lerobot.envs.utils import env_to_policy_features

        offered = {(rename_map or {}).get(key, key): one for key, one in env_to_policy_features(env_cfg).items()}
        check_fit(cfg, offered, _STATE if is_libero(env_cfg) else None)
        return make(cfg=cfg, env_cfg=env_cfg, rename_map=rename_map, **kwargs)

    return checked


def is_libero(env_cfg: Any) -> bool:
    """Whether LeRobot's configuration of an environment is that of LIBERO, or of a kind of it."""
    return any(kind.__name__ == "LiberoEnv" for kind in type(env_cfg).__mro__)


def check_length(steps: int | None) -> None:
    """Refuse an episode without steps, and one that the simulator would end on its own.

    Raises:
        LiberoError: With the numbers that are allowed.
    """
    if steps is not None and not 1 <= steps <= _HORIZON:
        raise LiberoError(
            f"An episode of {steps} steps: LIBERO's simulator ends each after {_HORIZON}.",
            f"--env.episode_length=1 to {_HORIZON}, or leave it out: then it is the benchmark's own",
        )


def check_fit(policy: Any, offered: Mapping[str, Any], state: int | None = None) -> None:
    """Refuse a policy that was trained on other cameras, states or actions than the environment has.

    LeRobot compares cameras only where nothing is renamed, and some policies run without a camera that they miss.

    Args:
        policy: LeRobot's configuration of a trained policy.
        offered: The environment's features under the policy's names.
        state: Width of the state, where it is not among them.

    Raises:
        LiberoError: One line that names both sides.
    """
    cameras = {key for key, one in (policy.input_features or {}).items() if _kind(one) == "VISUAL"}
    seen = {key for key, one in offered.items() if _kind(one) == "VISUAL"}
    if not (cameras <= seen or seen <= cameras):  # LeRobot's own rule, which it leaves out with a rename_map
        first, other = min(seen), min(cameras - seen)
        raise LiberoError(
            f"The policy looks at {', '.join(sorted(cameras))}; the environment offers {', '.join(sorted(seen))}.",
            f"""--rename_map='{{"{first}": "{other}", ...}}', if they show the same""",
        )
    trained = {**(policy.input_features or {}), **(policy.output_features or {})}
    wanted = {"observation.state": state, "action": _width(offered.get("action"))}
    for key, width in wanted.items():
        other = _width(trained.get(key))
        if None not in (width, other) and width != other:
            raise LiberoError(
                f"The policy was trained on {key} of {other} numbers; the environment has {width}.",
                "Evaluate it in the environment that it was trained for.",
            )


def _kind(feature: Any) -> str:
    return getattr(feature.type, "value", str(feature.type))


def _width(feature: Any) -> int | None:
    return None if feature is None else int(feature.shape[0])


def _watched(rollout: Callable[..., Any], result: ClosedLoop, limit: float) -> Callable[..., Any]:
    def watched(env: Any, *args: Any, render_callback: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
        start = now = time.perf_counter()
        cpu, calls = 0.0, 0

        def called(env: Any) -> None:  # once after the reset, then after each step
            nonlocal now, cpu, calls
            calls += 1
            if calls == 1:
                now, cpu = time.perf_counter(), time.process_time()
                result.reset += now - start
            if time.perf_counter() - start > limit:
                raise LiberoError(
                    f"An episode has not ended in {limit:.0f} s, after {calls - 1} steps.",
                    "Give --env.episode_length, --env.type=fast_libero, or more --episode-seconds.",
                )
            if render_callback is not None:
                render_callback(env)

        data = rollout(env, *args, render_callback=called, **kwargs)
        result.seconds += time.perf_counter() - now
        result.cpu += time.process_time() - cpu
        result.steps += (calls - 1) * env.num_envs
        if not data["action"].isfinite().all():
            raise LiberoError("The policy gives actions that are not finite.", "Look at its training and statistics.")
        return data

    return watched


def _kept(evaluation: Callable[..., Any], result: ClosedLoop) -> Callable[..., Any]:
    def kept(*args: Any, **kwargs: Any) -> Any:
        info = evaluation(*args, **kwargs)
        for task in info["per_task"]:
            successes = [bool(one) for one in task["metrics"]["successes"]]
            result.successes[task["task_group"], int(task["task_id"])] = successes
        return info

    return kept
