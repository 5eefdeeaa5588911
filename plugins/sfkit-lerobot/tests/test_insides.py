"""A policy whose insides differ is refused by name of what was looked for, by every adapter."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sfkit_lerobot.support import POLICIES
from sfkit_lerobot.testing import tiny_act, tiny_diffusion, tiny_lerobot_batch
from torch import nn

from sfkit import SpatialForcing
from sfkit.errors import AdapterError

ADAPTERS = {metadata["name"]: (target, metadata["handles"][0]) for target, metadata in POLICIES.items()}


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _fake(kind: str, **config: Any) -> Any:
    """A policy of LeRobot's class that was never built, as tests make them."""
    policy_class = _class(ADAPTERS[kind][1])
    policy = policy_class.__new__(policy_class)
    nn.Module.__init__(policy)
    picture = SimpleNamespace(shape=(3, 64, 64))
    policy.config = SimpleNamespace(image_features={"observation.images.front": picture}, **config)
    policy.weight = nn.Parameter(torch.zeros(1))
    return policy


@pytest.mark.parametrize("kind", ADAPTERS)
def test_wrap_names_what_a_policy_lacks(kind) -> None:
    with pytest.raises(AdapterError, match=r"is not built as the adapter .* expects: .*(attribute|None)") as caught:
        SpatialForcing.wrap(_fake(kind), "geometry")
    assert "It was looked for in: " in str(caught.value)
    assert "LeRobot 0.6.1" in str(caught.value)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_wrap_names_a_missing_configuration(kind) -> None:
    policy = _fake(kind)
    del policy.config
    with pytest.raises(AdapterError, match="has no attribute 'config'"):
        SpatialForcing.wrap(policy, "geometry")


def _without(policy: Any, path: str) -> None:
    """Take a module out of a policy."""
    parent, _, name = path.rpartition(".")
    delattr(policy.get_submodule(parent), name)


def _parts(path: str) -> list[str]:
    words = path.split(".")
    return [".".join(words[: end + 1]) for end in range(len(words))]


def test_each_part_of_the_way_to_a_decoder_is_named(kind, build) -> None:
    from sfkit.registry.registry import default_registry

    policy = build(kind)
    (entry,) = default_registry().adapters_for(type(policy))
    adapter = entry.load()(policy)
    policy.register_parameter("weight", nn.Parameter(torch.zeros(1)))  # when all else is gone
    paths = {*_parts(adapter.decoder_path), *_parts(adapter.connector_path), f"{adapter.decoder_path}.norm"}
    for path in sorted(paths, key=len, reverse=True):
        _without(policy, path)
        with pytest.raises(AdapterError, match=f"attribute .{path.rpartition('.')[2]}"):
            SpatialForcing.wrap(policy, "geometry")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (tiny_act, "model.encoder.norm"),
        (tiny_act, "model.encoder"),
        (tiny_diffusion, "diffusion.rgb_encoder.pool"),
        (tiny_diffusion, "diffusion.rgb_encoder.backbone"),
        (tiny_diffusion, "diffusion"),
    ],
)
def test_each_part_of_the_way_to_a_resnet_is_named(make, path) -> None:
    policy = make()
    policy.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    _without(policy, path)
    with pytest.raises(AdapterError, match=f"attribute .{path.rpartition('.')[2]}"):
        SpatialForcing.wrap(policy, "geometry")


def test_a_refused_policy_is_left_as_it_was(build) -> None:
    policy = build("smolvla")
    connector = policy.model.vlm_with_expert.vlm.model.connector
    del policy.model.vlm_with_expert.vlm.model.connector
    kind = type(policy)
    with pytest.raises(AdapterError):
        SpatialForcing.wrap(policy, "geometry")
    policy.model.vlm_with_expert.vlm.model.connector = connector
    assert type(policy) is kind
    policy.forward(tiny_lerobot_batch(policy))
