"""Tiny real policies with a vision-language model, from raw frames through their own preprocessors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sfkit_lerobot.testing import tiny_qwen3vl

    return tiny_qwen3vl(tmp_path_factory.mktemp("qwen3vl"))


@pytest.fixture(scope="session")
def groot_base(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> Path:
    from sfkit_lerobot.testing import tiny_groot_base

    return tiny_groot_base(tmp_path_factory.mktemp("groot"), qwen)


@pytest.fixture(scope="session")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sfkit_lerobot.testing import tiny_internvl

    return tiny_internvl(tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="session")
def wall_x_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sfkit_lerobot.testing import tiny_wall_x_base

    return tiny_wall_x_base(tmp_path_factory.mktemp("wall_x"))


@pytest.fixture(scope="session")
def molmoact2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sfkit_lerobot.testing import tiny_molmoact2_base

    return tiny_molmoact2_base(tmp_path_factory.mktemp("molmoact2"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture
def build(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``build(kind, **options)``: a tiny policy, always with the same weights."""
    from sfkit_lerobot import testing as tiny

    builders = {
        "groot": (tiny.tiny_groot, "groot_base"),
        "xvla": (tiny.tiny_xvla, "tokenizer"),
        "evo1": (tiny.tiny_evo1, "internvl"),
        "wall_x": (tiny.tiny_wall_x, "wall_x_base"),
        "vla_jepa": (tiny.tiny_vla_jepa, "qwen"),
        "molmoact2": (tiny.tiny_molmoact2, "molmoact2_base"),
    }

    def build(kind: str, **options: Any) -> Any:
        builder, folder = builders[kind]
        made = request.getfixturevalue(folder)
        torch.manual_seed(0)
        return builder(made, **options)

    return build


@pytest.fixture
def frames() -> Callable[..., dict[str, Any]]:
    """``frames(policy, ...)``: random frames as a dataset returns them, with depth in meters."""

    def frames(policy: Any, *, batch_size: int = 2, seed: int = 0, missing: tuple[str, ...] = ()) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        config, found = policy.config, {}
        for key, feature in config.image_features.items():
            if key in missing:
                continue
            h, w = feature.shape[1:]
            found[key] = torch.rand(batch_size, 3, h, w, generator=generator)
            found[f"{key}_depth"] = 0.4 + torch.rand(batch_size, 1, h, w, generator=generator)
        state, action = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        found["observation.state"] = torch.rand(batch_size, state, generator=generator) - 0.5
        found["action"] = torch.rand(batch_size, config.chunk_size, action, generator=generator) - 0.5
        texts = ["push the block to the target", "pick up the red cube and place it in the bowl"]
        return {**found, "task": (texts * batch_size)[:batch_size], "index": torch.arange(batch_size)}

    return frames


@pytest.fixture
def processors(request: pytest.FixtureRequest) -> dict[str, Callable[[Any], Any]]:
    """The preprocessor of a policy of each kind."""
    from lerobot.policies.evo1.processor_evo1 import make_evo1_pre_post_processors
    from lerobot.policies.molmoact2.processor_molmoact2 import make_molmoact2_pre_post_processors
    from lerobot.policies.vla_jepa.processor_vla_jepa import make_vla_jepa_pre_post_processors
    from lerobot.policies.wall_x.processor_wall_x import make_wall_x_pre_post_processors
    from sfkit_lerobot import testing as tiny

    one = torch.ones(4)
    found = {"min": -one, "max": one, "mean": 0 * one, "std": one, "q01": -one, "q99": one}
    stats = dict.fromkeys(("observation.state", "action"), found)
    return {
        "groot": lambda policy: tiny.tiny_groot_processors(policy, request.getfixturevalue("qwen"), stats)[0],
        "xvla": lambda policy: tiny.tiny_xvla_processors(policy, stats)[0],
        "evo1": lambda policy: make_evo1_pre_post_processors(policy.config, stats)[0],
        "wall_x": lambda policy: make_wall_x_pre_post_processors(policy.config, stats)[0],
        "molmoact2": lambda policy: make_molmoact2_pre_post_processors(policy.config, stats)[0],
        "vla_jepa": lambda policy: make_vla_jepa_pre_post_processors(policy.config, stats)[0],
    }


@pytest.fixture
def finish(processors: dict[str, Callable[[Any], Any]]) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """``finish(policy, frames)``: the batch of the policy's forward, depth beside it."""
    made: dict[int, Any] = {}

    def finish(policy: Any, frames: dict[str, Any]) -> dict[str, Any]:
        # GR00T takes every key of images for a camera, so the maps are kept out of its sight.
        depth = {key: value for key, value in frames.items() if key.endswith("_depth")}
        if id(policy) not in made:
            made[id(policy)] = processors[policy.config.type](policy)
        return {**made[id(policy)]({k: v for k, v in frames.items() if k not in depth}), **depth}

    return finish


@pytest.fixture
def batch_of(frames: Callable[..., Any], finish: Callable[..., Any]) -> Callable[..., Any]:
    """``batch_of(policy, ...)``: a random batch of the policy's forward."""
    return lambda policy, **options: finish(policy, frames(policy, **options))


@pytest.fixture
def adapter_of() -> Callable[..., Any]:
    """``adapter_of(policy, **options)``: the adapter that is registered for it, with the cameras of ``tiny_rig``."""
    from sfkit_lerobot.testing import tiny_rig

    from sfkit.registry.registry import default_registry

    def adapter_of(policy: Any, **options: Any) -> Any:
        (entry,) = default_registry().adapters_for(type(policy))
        adapter = entry.load()(policy, options)
        adapter.cameras = tiny_rig(policy)
        return adapter

    return adapter_of


@pytest.fixture
def wrap() -> Callable[..., Any]:
    """``wrap(policy, **arguments)``: aligned with geometry, calibrated by ``tiny_rig``."""
    from sfkit_lerobot.testing import tiny_rig

    from sfkit import SpatialForcing

    def wrap(policy: Any, **arguments: Any) -> Any:
        return SpatialForcing.wrap(policy, "geometry", **{"cameras": tiny_rig(policy), **arguments})

    return wrap


@pytest.fixture
def tapped() -> Callable[..., Any]:
    """``tapped(adapter, batch, layer)``: the hidden state, the views and the visual tokens of a forward."""
    from sfkit.policies.base import ForwardCall
    from sfkit.training.taps import Tap

    def tapped(adapter: Any, batch: dict[str, Any], layer: int) -> Any:
        tap = Tap(layer, adapter.tap(layer))
        tap.arm()
        torch.manual_seed(1)
        try:
            adapter.policy.forward(dict(batch))
            (hidden,) = tap.take()
        finally:
            tap.remove()
        with torch.no_grad():
            views = adapter.views(ForwardCall({"batch": batch}, None))
        return hidden, views, adapter.visual_tokens(hidden, views)

    return tapped


@pytest.fixture
def parameters_of() -> Callable[[Any], Any]:
    """``parameters_of(policy)``: what LeRobot's optimizer takes, which some policies give as a dict of names."""

    def parameters_of(policy: Any) -> Any:
        found = policy.get_optim_params()
        return list(found.values()) if isinstance(found, dict) else found

    return parameters_of
