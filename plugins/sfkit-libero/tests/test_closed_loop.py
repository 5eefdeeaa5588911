"""LeRobot's evaluation of a tiny policy, watched, in an environment that costs nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from sfkit_libero import LiberoError, closed_loop
from sfkit_libero.closed_loop import ClosedLoop, check_fit, check_length, evaluate, interval

pytest.importorskip("lerobot")
pytest.importorskip("scipy")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # LeRobot's imports warn of optional packages
    import gymnasium as gym
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.envs.configs import EnvConfig
    from lerobot.scripts import lerobot_eval
    from sfkit_lerobot.testing import tiny_act

SIDE = 64


class Corridor(gym.Env[Any, Any]):
    """A black picture; every second episode succeeds at its third step, the others end after five."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    task = task_description = "walk"
    _max_episode_steps = 5

    def __init__(self) -> None:
        self.render_mode, self.episode, self.step_ = "rgb_array", -1, 0
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8),
                "agent_pos": gym.spaces.Box(-1, 1, (4,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def _seen(self) -> dict[str, Any]:
        return {"pixels": np.zeros((SIDE, SIDE, 3), np.uint8), "agent_pos": np.zeros(4, np.float32)}

    def reset(self, **kwargs: Any) -> Any:
        super().reset(seed=kwargs.get("seed"))
        self.episode, self.step_ = self.episode + 1, 0
        return self._seen(), {"is_success": False}

    def step(self, action: Any) -> Any:
        self.step_ += 1
        success = self.episode % 2 == 0 and self.step_ == 3
        return self._seen(), float(success), success, False, {"is_success": success}

    def render(self) -> Any:
        return np.zeros((SIDE, SIDE, 3), np.uint8)


@EnvConfig.register_subclass("corridor")
@dataclass
class CorridorConfig(EnvConfig):  # type: ignore[misc]
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (4,)),
            "pixels": PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE, 3)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (4,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action", "pixels": "observation.image", "agent_pos": "observation.state",
        }
    )  # fmt: skip

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        mode = gym.vector.AutoresetMode.NEXT_STEP
        return {"corridor": {7: gym.vector.SyncVectorEnv([Corridor] * n_envs, autoreset_mode=mode)}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lerobot.policies.factory import make_pre_post_processors

    folder = tmp_path_factory.mktemp("policy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = tiny_act(cameras=("observation.image",), image_shape=(3, SIDE, SIDE))
        policy.save_pretrained(folder)
        stats = {key: {"mean": np.zeros(n), "std": np.ones(n)} for key, n in (("observation.state", 4), ("action", 4))}
        stats["observation.image"] = {"mean": np.zeros((3, 1, 1)), "std": np.ones((3, 1, 1))}
        for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
            processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # LeRobot's own handlers would take the place of pytest's, and videos cost more than the rest.
    monkeypatch.setattr(lerobot_eval, "init_logging", lambda: None)
    monkeypatch.setattr(lerobot_eval, "write_video", lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def flags(checkpoint: Path, tmp_path: Path) -> list[str]:
    return [
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--env.type=corridor",
        "--eval.batch_size=1",
        "--eval.n_episodes=4",
        f"--output_dir={tmp_path / 'eval'}",
    ]


def test_successes_and_steps_are_those_of_the_loop(flags: list[str], tmp_path: Path) -> None:
    before = lerobot_eval.rollout
    found = evaluate(flags)
    assert found.successes == {("corridor", 7): [True, False, True, False]}
    assert found.steps == 3 + 5 + 3 + 5
    assert found.seconds > 0
    assert found.report().splitlines()[0] == (
        "corridor, task 7: 2 of 4 episodes succeed: 50% (95 % Wilson interval 15% to 85%)"
    )
    assert (tmp_path / "eval" / "eval_info.json").is_file()  # LeRobot's own result, too
    assert lerobot_eval.rollout is before


def test_an_episode_that_does_not_end_is_stopped(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Corridor, "_max_episode_steps", 10**6)
    monkeypatch.setattr(Corridor, "step", lambda self, action: (self._seen(), 0.0, False, False, {}))
    with pytest.raises(LiberoError, match="has not ended in 1 s, after"):
        evaluate(flags, episode_seconds=1)


def test_actions_that_are_not_finite_are_told(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy

    select = ACTPolicy.select_action
    monkeypatch.setattr(ACTPolicy, "select_action", lambda self, batch: select(self, batch) * float("nan"))
    with pytest.raises(LiberoError, match="not finite"):
        evaluate(flags)


def test_a_policy_of_other_cameras_is_refused_before_it_runs(flags: list[str]) -> None:
    rename = '--rename_map={"observation.image": "observation.images.wrist"}'
    with pytest.raises(
        LiberoError, match=r"looks at observation.image; the environment offers observation.images.wrist"
    ):
        evaluate([*flags, rename])


def policy(action: int = 7, state: int = 8, cameras: tuple[str, ...] = ("observation.images.image",)) -> Any:
    inputs = {name: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in cameras}
    return SimpleNamespace(
        input_features={**inputs, "observation.state": PolicyFeature(FeatureType.STATE, (state,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
    )


def offered() -> dict[str, PolicyFeature]:
    cameras = ("observation.images.image", "observation.images.image2")
    shown = {name: PolicyFeature(FeatureType.VISUAL, (3, 360, 360)) for name in cameras}
    return {**shown, "action": PolicyFeature(FeatureType.ACTION, (7,))}


def test_a_policy_that_fits_is_let_through() -> None:
    check_fit(policy(), offered(), state=8)
    check_fit(policy(cameras=(*offered(), "observation.images.empty_camera_0")), offered(), state=8)


def test_fault_78_a_camera_that_a_rename_hides_is_told() -> None:
    renamed = {"observation.images.top": offered()["observation.images.image"], **offered()}
    del renamed["observation.images.image"]
    both = ("observation.images.image", "observation.images.image2")
    with pytest.raises(LiberoError, match=r"looks at observation.images.image, .*offers observation.images.image2, "):
        check_fit(policy(cameras=both), renamed, state=8)


@pytest.mark.parametrize(
    ("trained", "said"),
    [(policy(action=4), "action of 4 numbers; the environment has 7"),
     (policy(state=4), "observation.state of 4 numbers; the environment has 8"),
     (policy(cameras=("observation.top",)), 'rename_map=\'{"observation.images.image": "observation.top"')],
)  # fmt: skip
def test_a_policy_that_does_not_fit_is_refused(trained: Any, said: str) -> None:
    with pytest.raises(LiberoError, match=said) as error:
        check_fit(trained, offered(), state=8)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9])
def test_an_episode_that_the_simulator_ends_is_refused(steps: int) -> None:
    check_length(None)
    check_length(1000)
    with pytest.raises(LiberoError, match="ends each after 1000"):
        check_length(steps)


def test_libero_is_made_ready_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.envs.configs import LiberoEnv

    monkeypatch.setattr(closed_loop, "check_ready", lambda: (_ for _ in ()).throw(LiberoError("no assets")))
    make = closed_loop._ready(lambda cfg: "made")
    assert make(CorridorConfig()) == "made"
    with pytest.raises(LiberoError, match="no assets"):
        make(LiberoEnv())


# From the formula, with z = 1.96.
@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"), [(3, 10, 0.1078, 0.6032), (0, 50, 0.0, 0.0713), (50, 50, 0.9287, 1.0)]
)
def test_the_interval_is_wilsons(successes: int, episodes: int, low: float, high: float) -> None:
    assert interval(successes, episodes) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_all_tasks_together_get_a_line() -> None:
    found = ClosedLoop(
        {("libero_spatial_fast_rendering", 0): [True], ("libero_spatial_fast_rendering", 1): [False]}, 10
    )
    assert "all: 1 of 2 episodes succeed" in found.report()
    assert "libero_spatial_fast_rendering, task 0" in found.report()
