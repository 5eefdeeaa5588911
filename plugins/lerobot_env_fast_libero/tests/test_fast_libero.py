"""The environment type that LeRobot finds by itself, without LIBERO."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lerobot")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # LeRobot's imports warn of optional packages
    import lerobot_env_fast_libero
    from lerobot.envs.configs import EnvConfig, LiberoEnv
    from lerobot_env_fast_libero import FastLiberoEnv

NAME = "lerobot_env_fast_libero"


def test_lerobot_finds_the_distribution_by_its_name() -> None:
    # By the name in its metadata, which must be that of the module, underscores included.
    assert metadata.metadata(NAME)["Name"] == NAME == lerobot_env_fast_libero.__name__


def test_its_type_is_one_of_lerobots() -> None:
    assert EnvConfig.get_choice_class("fast_libero") is FastLiberoEnv
    assert FastLiberoEnv().type == "fast_libero"
    assert FastLiberoEnv(task_ids=[3]).gym_kwargs == LiberoEnv(task_ids=[3]).gym_kwargs


def test_it_is_off_where_it_is_not_asked_for() -> None:
    # Its import alone, in each command of LeRobot, brings neither the simulator nor the change to it.
    assert not {"libero", "robosuite", f"{NAME}.rendering"} & sys.modules.keys()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The environments that were said to render fast; rendering itself needs LIBERO."""
    said: list[Any] = []
    rendering = ModuleType(f"{NAME}.rendering")
    rendering.set_fast = said.append  # type: ignore[attr-defined]
    rendering.make_fast = lambda make: said.append(make())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, rendering.__name__, rendering)
    return said


def test_results_are_marked_and_each_environment_is_told(built: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"libero_spatial": {0: SimpleNamespace(envs=["a", "b"]), 4: SimpleNamespace(_env_fns=[lambda: "c"])}}
    monkeypatch.setattr(LiberoEnv, "create_envs", lambda self, n, parallel: vectors)
    made = FastLiberoEnv().create_envs(2)
    assert list(made) == ["libero_spatial_fast_rendering"]
    assert built == ["a", "b"]
    made["libero_spatial_fast_rendering"][4]._env_fns[0]()
    assert built == ["a", "b", "c"]


def test_a_lerobot_of_another_shape_is_refused(built: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiberoEnv, "create_envs", lambda self, n, parallel: {"libero_spatial": {0: object()}})
    with pytest.raises(RuntimeError, match="fast_libero cannot reach the environments"):
        FastLiberoEnv().create_envs(1)
