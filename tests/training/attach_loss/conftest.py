"""The alignment loss worked out by hand, for a policy whose loss is computed by the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.policies.base import ForwardCall
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import OutsideAdapter, OutsidePolicy, PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

WEIGHT, LAYER = 0.5, 2


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(**arguments of wrap)``: the policy in float64, always with the same weights."""

    def make(
        *,
        kind: type[TinyPolicy] = OutsidePolicy,
        adapter: type[TinyAdapter] = OutsideAdapter,
        policy: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        torch.manual_seed(0)
        plain = kind(**(policy or {})).double()
        options = {"student_layer": LAYER, "weight": WEIGHT, **options}
        return SpatialForcing.wrap(plain, PatchTeacher(), adapter=adapter(plain), **options)

    return make


@pytest.fixture
def by_hand() -> Callable[..., tuple[Any, Tensor]]:
    """``by_hand(policy, batch)``: what forward returns without sfkit, and its weighted alignment loss."""

    def by_hand(policy: TinyPolicy, batch: dict[str, Tensor]) -> tuple[Any, Tensor]:
        handle, seen = policy.spatial_forcing, []
        hook = policy.blocks[LAYER].input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with SpatialForcing.disabled(policy):
            output = policy(batch)
        hook.remove()
        views = handle.adapter.views(ForwardCall({"batch": batch}, output))
        tokens = handle.adapter.visual_tokens(seen[0], views)
        (target,) = handle.runners[0].features(views, [1], tokens.grid)
        projected = handle.pairs[0].projector(tokens.values.float(), tokens.mask)
        cosine = F.cosine_similarity(projected, target.values, dim=-1)
        return output, WEIGHT * (1 - cosine).mean()

    return by_hand


@pytest.fixture
def batch() -> Callable[..., dict[str, Tensor]]:
    """``batch(seed)``: a random batch in float64."""
    return lambda seed=0, b=2: {k: v.double() for k, v in tiny_batch(b=b, seed=seed, geometry=False).items()}


@pytest.fixture
def gradients() -> Callable[..., dict[str, Tensor]]:
    """``gradients(policy)``: of all parameters, by name."""
    return lambda policy: {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture
def same() -> Callable[..., None]:
    """``same(one, two)``: gradients that agree to what float32, in which alignment is computed, can hold."""

    def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
        assert_rounded(*({name: value.float() for name, value in each.items()} for each in (one, two)))

    return same
