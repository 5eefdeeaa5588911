"""What is known of the factors of a training loop."""

from __future__ import annotations

import copy

import pytest

from sfkit.errors import LossError
from sfkit.training import loss_scale as module
from sfkit.training.loss_scale import LossScale

CALL = {"num_items_in_batch": 8}


@pytest.mark.parametrize(
    ("accumulation", "processes", "share"), [(4, None, 0.25), (4, 1, 0.25), (4, 2, 0.125), (1, 3, 1 / 3)]
)
def test_fault_48_the_share_of_a_call_follows_batches_and_processes(
    accumulation: int, processes: int | None, share: float
) -> None:
    scale = LossScale(accumulation)
    scale.processes = processes
    assert scale.share_of_the_step(CALL) == pytest.approx(share)
    assert scale.share_of_the_step({}) == 1.0


def test_fault_48_several_processes_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_world_size", lambda: 2)
    with pytest.raises(LossError, match="average_tokens_across_devices"):
        LossScale(4).share_of_the_step(CALL)
    known = LossScale(4)
    known.processes = 1
    assert known.share_of_the_step(CALL) == 0.25


def test_a_copy_has_no_part_in_the_loop() -> None:
    class Scaler:
        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("a GradScaler refuses to be copied in the middle of a step")

    assert copy.deepcopy(LossScale(4, Scaler())).scaler is None
