"""Between two logs, alignment never waits for the device."""

from __future__ import annotations

import contextlib
import copy
import traceback
from dataclasses import replace

import pytest
import torch
from sfkit_lerobot.testing import tiny_lerobot_batch, tiny_rig
from torch.utils._python_dispatch import TorchDispatchMode

from sfkit.views.cameras import PoseTable

_META = torch.device("meta")


class Sent(TorchDispatchMode):
    """Lists the copies from the host to the device that wait for it, as copies do if nobody asks otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = func.overloadpacket.__name__ == "_to_copy" and args[0].device.type == "cpu"
        if copies and kwargs.get("device") == _META and not kwargs.get("non_blocking"):
            self.note()
        return func(*args, **kwargs)

    def note(self) -> None:
        inner = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        self.waiting.append(f"{inner[-3].filename}:{inner[-3].lineno}")


@pytest.fixture
def moving():
    """``moving(policy)``: cameras that move, with a pose for each of 50 frames."""

    def moving(policy):
        rig = tiny_rig(policy)
        cameras = {
            key: camera.model_copy(update={"world_from_camera": None, "pose_key": "pose"})
            for key, camera in rig.cameras.items()
        }
        return replace(rig, cameras=cameras, poses={"pose": PoseTable(torch.arange(50), torch.eye(4).repeat(50, 1, 1))})

    return moving


@pytest.fixture
def step(build, wrap, moving):
    """``step(kind, device)``: what joins the alignment of a step, between two logs, on a device; and its handle."""

    def step(kind, device):
        policy = build(kind)
        wrap(policy, teacher={"name": "geometry", "frame": "world"}, cameras=moving(policy))
        handle, seen = policy.spatial_forcing, {}
        handle.adapter.log_every(100)
        batch = tiny_lerobot_batch(policy, geometry=True)
        attach = handle._attach
        handle.__dict__["_attach"] = lambda plan, arguments, output, captured, inputs: (
            seen.update(captured=captured) or attach(plan, arguments, output, captured, inputs)
        )
        for _ in range(2):  # the checks of the first batch, and the health that is measured on it, are read back
            policy.forward(dict(batch))
        del handle.__dict__["_attach"]
        policy.to(device)
        batch = {key: value.to(device) for key, value in batch.items()}
        loss = torch.zeros((), device=device, requires_grad=True)
        captured = {
            site: tuple(torch.empty_like(state, device=device, requires_grad=True) for state in states)
            for site, states in seen["captured"].items()
        }
        plan = handle._begin()
        return lambda: handle._attach(plan, ((batch,), {}), (loss, {}), captured, {})

    return step


def test_nothing_is_read_back_and_nothing_sent_waits(kind, step, monkeypatch) -> None:
    # A tensor on "meta" has no values: whatever asks for one fails.
    run = step(kind, _META)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no "meta"
    run()  # what is sent once stays there
    sent, make = Sent(), torch.tensor

    def made(*args, **kwargs):
        if kwargs.get("device") == _META:
            sent.note()
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", made)
    with sent:
        loss, logs = run()
    assert loss.device == _META
    assert logs == {}
    assert sent.waiting == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_is_not_waited_for(kind, step) -> None:
    run = step(kind, torch.device("cuda"))
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, logs = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logs == {}


def test_a_pose_table_is_copied_without_device_copies() -> None:
    table = PoseTable(torch.arange(3), torch.eye(4).repeat(3, 1, 1))
    table(torch.tensor([1]))
    assert table._copies
    assert not copy.deepcopy(table)._copies
    assert torch.equal(copy.deepcopy(table).poses, table.poses)
