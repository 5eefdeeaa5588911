"""Joining a per-sample term to losses of every form."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch

from sfkit.errors import LossError
from sfkit.policies.base import add_per_sample, find_loss, replace_loss

EXTRA = torch.tensor([1.0, 3.0])


@pytest.mark.parametrize("shape", [(), (2,), (2, 5), (2, 4, 3)])
def test_the_mean_of_the_sum_is_the_sum_of_the_means(shape: tuple[int, ...]) -> None:
    loss = torch.rand(shape)
    joined = add_per_sample(loss, EXTRA)
    assert joined.shape == loss.shape
    assert torch.allclose(joined.mean(), loss.mean() + 2.0)


def test_a_loss_of_another_batch_size_is_refused() -> None:
    with pytest.raises(LossError, match="batch of 2"):
        add_per_sample(torch.rand(3), EXTRA)


def test_low_precision_losses_keep_the_alignment_exact() -> None:
    joined = add_per_sample(torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor([1e-3, 1e-3]))
    assert joined.item() == pytest.approx(1.001, rel=1e-6)


def test_losses_are_found_and_replaced_in_every_form() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    pair = namedtuple("pair", "loss logits")
    for output in (one, (one, {}), [one, 5], {"loss": one}, OrderedDict(action_loss=one), pair(one, 3)):
        assert find_loss(output) is one
        replaced = replace_loss(output, two)
        assert find_loss(replaced) is two
        assert type(replaced) is type(output)
    for nothing in (None, {}, {"logits": one}, (1, 2), ()):
        assert find_loss(nothing) is None
        with pytest.raises(LossError, match="No loss found"):
            replace_loss(nothing, two)
