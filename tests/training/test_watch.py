"""Watches keep every input of a module in a forward, for adapters whose images exist inside forward only."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sfkit import SpatialForcing
from sfkit.errors import TapError
from sfkit.policies.base import TapPoint
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.taps import InputRecorder


class WatchingAdapter(TinyAdapter):
    """Takes its images from what the embedding was given, instead of from the batch."""

    def extra_hooks(self):
        return {"embed": TapPoint(self.policy.embed, "embed")}

    def views(self, call):
        (pixels,) = call.inputs["embed"]
        batch = call.arguments["batch"]
        images = (pixels * 0.5 + 0.5).reshape(batch["images"].shape)
        return super().views(type(call)({"batch": {**batch, "images": images}}, call.output))


def wrap(policy: TinyPolicy) -> TinyPolicy:
    return SpatialForcing.wrap(policy, PatchTeacher(), student_layer=2, adapter=WatchingAdapter(policy))


def test_every_input_is_kept_in_order_and_then_forgotten() -> None:
    layer = nn.Linear(2, 2)
    watch = InputRecorder("images", TapPoint(layer, "layer"))
    layer(torch.zeros(1, 2))
    watch.arm()
    inputs = [torch.full((1, 2), float(i), requires_grad=True) for i in range(3)]
    for value in inputs[:2]:
        layer(value)
    layer(input=inputs[2])
    watch.armed = False
    layer(torch.zeros(1, 2))
    seen = watch.take()
    assert [float(value[0, 0]) for value in seen] == [0.0, 1.0, 2.0]
    assert not any(value.requires_grad for value in seen)
    assert watch._later == []
    watch.remove()
    assert not layer._forward_pre_hooks


def test_a_module_that_does_not_run_is_an_error() -> None:
    watch = InputRecorder("images", TapPoint(nn.Identity(), "vision"))
    watch.arm()
    with pytest.raises(TapError, match="vision did not run"):
        watch.take()


def test_fault_04_a_watch_does_not_see_the_recomputation() -> None:
    layer = nn.Linear(2, 2)
    watch = InputRecorder("images", TapPoint(layer, "layer"))
    watch.arm()
    output = checkpoint(layer, torch.ones(1, 2), use_reentrant=False)
    assert len(watch.take()) == 1
    watch.disarm()
    output.sum().backward()
    assert watch._later == []


def test_an_adapter_gets_what_it_watches(tiny) -> None:
    plain, policy = tiny(), tiny()
    SpatialForcing.wrap(plain, PatchTeacher(), student_layer=2, adapter=TinyAdapter(plain))
    wrap(policy)
    for one in (plain, policy, copy.deepcopy(policy)):
        torch.manual_seed(1)
        _, info = one(tiny_batch())
        assert info["sf_loss"] == pytest.approx(plain.spatial_forcing.metrics()["sf_loss"], rel=1e-5)
    assert all(not watch._later and not watch.armed for watch in policy.spatial_forcing.taps.recorders.values())
    assert SpatialForcing.unwrap(policy) is policy
    assert not policy.embed._forward_pre_hooks
