"""What LeRobot's log shows: means over its window, and nothing read back from the device in between."""

from __future__ import annotations

import math

import pytest
import torch
from sfkit_lerobot.logs import LogWindow
from sfkit_lerobot.testing import tiny_lerobot_batch

from sfkit import SpatialForcing


def test_means_over_the_window_leave_out_what_is_not_known() -> None:
    window = LogWindow(3, done=2)
    window.add({"a": torch.tensor(1.0), "b": torch.tensor(math.nan)})
    assert window.due() == {"a": 1.0, "b": pytest.approx(math.nan, nan_ok=True)}
    for step, value in enumerate((1.0, 2.0, 6.0), start=1):
        window.add({"a": torch.tensor(value), "b": torch.tensor(math.nan if step == 2 else value)})
        found = window.due()
        assert bool(found) == (step == 3)
    assert found == {"a": 3.0, "b": 3.5}


def test_what_a_window_has_not_is_not_shown_as_zero() -> None:
    window = LogWindow(2)
    shown = []
    for step in range(6):
        rare = {"sf_grad_ratio": torch.tensor(0.5 + step)} if step in (1, 5) else {}
        aligned = {"sf_loss": torch.tensor(0.25)} if step < 4 else {}
        window.add({"action_loss": torch.tensor(float(step)), **rare, **aligned})
        shown.append(window.due())
    assert shown[::2] == [{}, {}, {}]
    assert shown[1] == {"action_loss": 0.5, "sf_grad_ratio": 1.5, "sf_loss": 0.25}
    assert shown[3] == {"action_loss": 2.5, "sf_grad_ratio": 1.5, "sf_loss": 0.25}
    assert shown[5] == {"action_loss": 4.5, "sf_grad_ratio": 5.5, "sf_loss": pytest.approx(math.nan, nan_ok=True)}


def test_between_two_logs_nothing_is_read_back(kind, build, wrap, monkeypatch) -> None:
    policy = wrap(build(kind))
    policy.spatial_forcing.adapter.log_every(2)
    batch = tiny_lerobot_batch(policy, geometry=True)
    policy.forward(dict(batch))
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(tuple(self.shape)) or tolist(self))
    _, second = policy.forward(dict(batch))
    assert (6,) in reads
    reads.clear()
    _, third = policy.forward(dict(batch))
    assert (6,) not in reads
    figures = {"action_loss", "sf_loss", "sf_cosine", "sf_effective_weight", "sf_grad_ratio", "sf_grad_cosine"}
    assert figures <= set(second)
    assert not figures & set(third)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_between_two_logs_the_gpu_is_not_waited_for(build, wrap) -> None:
    policy = wrap(build("smolvla")).cuda()
    adapter = SpatialForcing.of(policy).adapter
    adapter.log_every(2)
    loss = torch.ones((), device="cuda", requires_grad=True)
    logs = {"sf_loss": torch.ones((), device="cuda")}
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, info = adapter.with_loss((loss, {}), loss, logs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert info == {}
    assert adapter.with_loss((loss, {}), loss, logs)[1] == {"sf_loss": 1.0}
