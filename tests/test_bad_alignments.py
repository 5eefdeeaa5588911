"""What cannot be aligned: an error that says what to do, at the wrap or on the first batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit.errors import ConfigError, ShapeError
from sfkit.testing.tiny import PatchTeacher, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]
TEACHER = PatchTeacher()
#: An image of one patch: the policy has no grid.
ONE_PATCH = {"patch": 32}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"student_layer": 4}, r"Student layer 4 is out of range for TinyPolicy\.\n.*0 \(embeddings\) to 3"),
        ({"student_layer": -1}, r"Student layer -1 is out of range"),
        ({"pairs": [(1, TEACHER, 2), (1, TEACHER, 2)]}, "listed twice; give it once with the summed weight"),
        ({"teacher_layer": 4}, r"Teacher layer 4 is out of range for teacher 'patch'\.\n.*1 to 3"),
        ({"weight": math.nan}, "weight must be >= 0, .* got nan"),
        ({"weight": -0.5}, "weight must be >= 0, .* got -0.5"),
        ({"weight": math.inf}, "weight must be >= 0, .* got inf"),
        ({"weight": "balance:-1"}, "needs a ratio above 0"),
        ({"objective": ("sum", {"terms": [("cosine", math.nan)]})}, "weight must be"),
        ({"objective": ("info-nce", {"temperature": 0})}, r"temperature must be > 0, got 0\."),
        ({"projector": "identity"}, r"the student has 16 channels and the target 12\.\n.*\"linear\""),
        ({"objective": "cosin"}, "Unknown objective 'cosin'.*Did you mean 'cosine'"),
        ({"projector": "mpl"}, "Unknown projector 'mpl'.*Did you mean 'mlp'"),
    ],
)
def test_it_is_refused_at_the_wrap(wrapped: Make, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrapped(None if "pairs" in arguments else TEACHER, **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objective": ("info-nce", {"negatives": "view"})}, "finds no negative in the"),
        ({"objective": ("info-nce", {"negatives": "devices"}), "one": True}, "finds no negative in the"),
        ({"objective": "relational"}, "finds no pair of patches"),
        ({"objective": ("relational", {"scope": "across"}), "one": True}, "finds no pair of patches"),
        ({"objective": "attention"}, "nothing to attend to in 1 x 1 tokens"),
        ({"transforms": ["spatial-norm"]}, "needs several patches in a view, there is one"),
    ],
)
def test_what_needs_a_grid_says_so_on_a_policy_without_one(wrapped: Make, arguments: dict[str, Any], says: str) -> None:
    one = arguments.pop("one", False)
    policy = wrapped(TEACHER, policy=ONE_PATCH, **arguments)
    with pytest.raises(ShapeError, match=says):
        policy(tiny_batch(b=1 if one else 2, v=1 if one else 2))


@pytest.mark.parametrize("objective", ["cosine", "info-nce", "relational", "angular-scale", "attention"])
@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_without_valid_tokens_the_loss_is_0_with_finite_gradient(wrapped: Make, objective: str, projector: str) -> None:
    policy = wrapped(TEACHER, objective=objective, projector=projector, self_check=False)
    batch = {**tiny_batch(), "present": torch.zeros(2, 2, dtype=torch.bool)}
    with pytest.warns(UserWarning, match="No visual token"):
        loss, logs = policy(batch)
    loss.backward()
    assert logs["sf_loss"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())
