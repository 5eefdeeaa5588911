"""The tap by itself."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from sfkit.errors import TapError
from sfkit.policies.base import TapPoint
from sfkit.training.taps import Tap


@pytest.fixture
def norm() -> nn.LayerNorm:
    return nn.LayerNorm(4)


def test_fault_04_the_first_firing_is_kept(norm: nn.LayerNorm) -> None:
    # A recomputation inside the same forward, or a decoder that runs twice, must not replace what was captured.
    tap = Tap("student layer 1", TapPoint(norm, "norm"))
    first, second = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    tap.arm()
    norm(first)
    norm(second)
    assert tap.fired == 2
    assert tap.take()[0] is first


def test_fault_39_a_tap_forgets(norm: nn.LayerNorm) -> None:
    tap = Tap("student layer 1", TapPoint(norm, "norm"))
    for end in (tap.take, tap.disarm):
        hidden = torch.zeros(1, 2, 4)
        kept = weakref.ref(hidden)
        tap.arm()
        norm(hidden)
        end()
        del hidden
        assert kept() is None


def test_it_looks_only_while_armed(norm: nn.LayerNorm) -> None:
    tap = Tap("student layer 1", TapPoint(norm, "norm"))
    norm(torch.zeros(1, 2, 4))
    tap.arm()
    tap.disarm()
    norm(torch.zeros(1, 2, 4))
    assert (tap.fired, tap.hidden) == (0, None)
    with pytest.raises(TapError, match="did not fire"):
        tap.take()


def test_by_keyword_too_and_three_dimensions_only(norm: nn.LayerNorm) -> None:
    tap = Tap("student layer 2", TapPoint(norm, "norm"))
    tap.arm()
    hidden = torch.zeros(1, 2, 4)
    norm(input=hidden)
    assert tap.take()[0] is hidden
    norm(torch.zeros(2, 4))
    with pytest.raises(TapError, match=r"caught \(2, 4\), expected \(b, n, d\) or a map"):
        tap.take()


def test_removed_it_leaves_no_hook(norm: nn.LayerNorm) -> None:
    tap = Tap("student layer 1", TapPoint(norm, "norm"))
    tap.remove()
    assert not norm._forward_pre_hooks
