"""Both gradients at the tapped tokens, from one ordinary backward; and the weight that balances them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, SfkitWarning
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.gradients import GradientMeter, GradientSums
from sfkit.training.taps import Residual
from sfkit.training.weighting import Balance

Make = Callable[..., TinyPolicy]


def by_hand(make: Make, tiny: Make, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Ratio (at weight 1) and cosine, from one backward for each of the two losses."""
    found = {}
    for name, policy in (("action", tiny()), ("both", make(weight=1.0))):
        seen: list[torch.Tensor] = []
        policy.blocks[2].input_layernorm.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        torch.manual_seed(0)
        found[name] = torch.autograd.grad(policy(batch)[0], seen[0])[0][:, :-1].double()
    action, alignment = found["action"], found["both"] - found["action"]
    ratio = float(alignment.norm() / action.norm())
    return ratio, float((alignment * action).sum() / alignment.norm() / action.norm())


def measured(policy: TinyPolicy) -> GradientSums:
    return GradientSums.of(policy.spatial_forcing.weighting.meter.take(torch.device("cpu")))


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_ratio_and_cosine_are_those_of_two_separate_backwards(
    wrapped: Make, tiny: Make, checkpointing: str, scale: float
) -> None:
    batch = tiny_batch()
    ratio, cosine = by_hand(wrapped, tiny, batch)
    policy = wrapped(weight="balance:0.3", policy={"checkpointing": checkpointing})
    torch.manual_seed(0)
    (scale * policy(batch)[0]).backward()
    sums = measured(policy)
    assert float(sums.ratio) == pytest.approx(0.3 * ratio, rel=1e-4)
    assert float((sums.unweighted / sums.action).sqrt()) == pytest.approx(ratio, rel=1e-4)
    assert float(sums.cosine) == pytest.approx(cosine, rel=1e-3, abs=1e-5)


def test_measuring_changes_no_gradient(wrapped: Make) -> None:
    balanced, fixed = wrapped(weight="balance:0.3"), wrapped(weight=0.3)
    for policy in (balanced, fixed):
        torch.manual_seed(0)
        policy(tiny_batch())[0].backward()
    one, two = ({n: p.grad for n, p in each.named_parameters() if p.grad is not None} for each in (balanced, fixed))
    assert_rounded(one, two)


def test_the_balance_makes_no_further_backward_through_the_policy(
    wrapped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = wrapped(weight="balance:0.3", health={"every": 0}, self_check=False)
    passes: list[str] = []

    def watch(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: passes.append("block"))

    for block in policy.blocks:
        block.input_layernorm.register_forward_hook(watch)  # type: ignore[union-attr]
    real = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: passes.append("backward") or real(*a, **k))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a backward pass of sfkit's own"))
    for seed in range(3):
        policy(tiny_batch(seed=seed))[0].backward()
        assert sorted(passes) == ["backward", *["block"] * len(policy.blocks)]
        passes.clear()
    assert float(policy.spatial_forcing.weighting.now(torch.device("cpu"))) != pytest.approx(0.3), (
        "and yet it has measured"
    )


def test_the_balanced_weight_gives_the_ratio_that_was_asked_for(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1")
    batch = tiny_batch()
    for step in range(3):
        _, info = (out := policy(batch))
        out[0].backward()
        if step == 0:
            assert info["sf_effective_weight"] == pytest.approx(0.1), "before the first measurement"
        else:
            again = measured(policy)
            assert float(again.ratio) == pytest.approx(0.1, rel=1e-3)
            policy.spatial_forcing.weighting.meter.add(0, torch.stack([s[0] for s in vars(again).values()]))
    assert "balance: gradient ratio 0.1" in str(policy.spatial_forcing.status())
    assert "loss = action + balance:0.1 × " in policy.spatial_forcing.describe()


def test_the_schedule_scales_the_ratio_and_not_the_balance(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1", schedule="linear:4")
    ratios = []
    for _ in range(4):
        policy(tiny_batch())[0].backward()
        sums = measured(policy)
        ratios.append(float(sums.ratio))
        policy.spatial_forcing.weighting.meter.add(0, torch.stack([s[0] for s in vars(sums).values()]))
    assert ratios[1:] == pytest.approx([0.075, 0.05, 0.025], rel=1e-3)


def test_accumulated_batches_count_together(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1")
    losses = [policy(tiny_batch(seed=seed))[0] for seed in (0, 1)]
    sum(losses).backward()  # type: ignore[union-attr]
    one, other = wrapped(weight="balance:0.1"), wrapped(weight="balance:0.1")
    for policy_, seed in ((one, 0), (other, 1)):
        policy_(tiny_batch(seed=seed))[0].backward()
    total = measured(one).action + measured(other).action
    assert float(measured(policy).action) == pytest.approx(float(total), rel=1e-4)


def test_fault_39_hooks_and_gradients_go_with_the_graph(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1")
    kept: list[weakref.ref[torch.Tensor]] = []
    policy.blocks[2].input_layernorm.register_forward_pre_hook(lambda m, a: kept.append(weakref.ref(a[0])))
    policy(tiny_batch())[0].backward()
    policy(tiny_batch())  # its graph is dropped without a backward
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_fault_32_the_balance_survives_a_resume(wrapped: Make, tiny: Make, tmp_path: Path) -> None:
    policy = wrapped("geometry", weight="balance:0.1")
    for seed in range(3):
        policy(tiny_batch(seed=seed))[0].backward()
    policy.spatial_forcing.save(tmp_path)
    plain = tiny()
    resumed: Any = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    uninterrupted, again = (
        [which(tiny_batch())[1]["sf_effective_weight"] for _ in range(2)] for which in (policy, resumed)
    )
    assert uninterrupted == again
    assert again[0] != pytest.approx(0.1)
    fixed: Any = SpatialForcing.from_pretrained(tiny_ := tiny(), tmp_path, adapter=TinyAdapter(tiny_), weight=0.2)
    assert float(fixed.spatial_forcing.weighting.now(torch.device("cpu"))) == pytest.approx(0.2)


def test_without_an_action_gradient_at_the_tap_the_user_is_told(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1", student_layer=3)  # after the last block only the state token is read
    for _ in range(50):
        policy(tiny_batch(b=1))[0].backward()
    with pytest.warns(SfkitWarning, match="nothing to balance"):
        policy(tiny_batch(b=1))


def test_overflow_and_empty_steps_leave_the_balance_as_it_was() -> None:
    balance = Balance(0.1)
    balance.update(GradientSums.of(torch.tensor([[1.0, 4.0, 0.0, 1.0]])))
    weight = float(balance.weight(torch.device("cpu")))
    assert weight == pytest.approx(0.2)
    for row in ([torch.inf, 4.0, 0.0, 1.0], [torch.nan] * 4, [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]):
        balance.update(GradientSums.of(torch.tensor([row])))
        assert float(balance.weight(torch.device("cpu"))) == weight
    balance.update(GradientSums.of(torch.tensor([[1.0, 400.0, 0.0, 1.0]])))
    assert float(balance.weight(torch.device("cpu"))) == pytest.approx(0.2 * 10**0.02)


@pytest.mark.parametrize("power", [20, 26, 40, 60])
def test_fault_70_a_large_loss_scale_leaves_the_balance_alive(wrapped: Make, power: int) -> None:
    # 2^60 is no scale that a GradScaler reaches, but one that the squares of these gradients still bear.
    weights = []
    for scale in (1.0, 2.0**power):
        policy = wrapped(weight="balance:0.3", health={"every": 1})
        for seed in range(3):
            (scale * policy(tiny_batch(seed=seed))[0]).backward()
        policy.spatial_forcing.weighting.begin(3, torch.device("cpu"), ())
        assert policy.spatial_forcing.weighting.balance.measured
        weights.append(float(policy.spatial_forcing.weighting.now(torch.device("cpu"))))
        assert 0 < policy.spatial_forcing.metrics()["sf_grad_ratio"] < torch.inf
    assert weights[1] == pytest.approx(weights[0], rel=1e-4)
    assert weights[0] != pytest.approx(0.3, rel=1e-2)


@pytest.mark.parametrize("column", [0, 1, 3])
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 0.0])
def test_fault_70_each_sum_is_tested_by_itself(column: int, value: float) -> None:
    whole = torch.full((1, 4), 2.0**100)  # the product of three overflows, the product of all but one may not
    assert bool(GradientSums.of(whole).known)
    whole[0, column] = value
    assert not bool(GradientSums.of(whole).known)


def test_fault_70_a_step_of_float16_that_overflows_is_skipped_alone(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.3")
    for scale in (2.0**16, torch.inf, 2.0**15):  # a GradScaler halves its scale after the overflow
        (scale * policy(tiny_batch())[0]).backward()
    balance = policy.spatial_forcing.weighting.balance
    before = balance.log.clone()
    policy.spatial_forcing.weighting.begin(3, torch.device("cpu"), ())
    assert bool(balance.log.isfinite())
    assert float(before) == pytest.approx(float(balance.log), abs=1e-4), "the same batch has the same quotient"


def test_a_tensor_without_gradient_is_left_alone() -> None:
    meter, site = GradientMeter(1), Residual(1)
    frozen = torch.zeros(1, 2, 3)
    assert meter.branches({site: (frozen,)}, 1.0)[site][0] is frozen
    assert float(GradientSums.of(meter.take(torch.device("cpu"))).ratio.isnan())


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (-0.1, 'weight must be >= 0, or "balance:0.1", got -0.1'),
        (float("nan"), "got nan"),
        ("much", "got 'much'"),
        (True, "got True"),
        ("balance", "needs a ratio above 0"),
        ("balance:", "needs a ratio above 0"),
        ("balance:0", "needs a ratio above 0"),
        ("balance:-1", "needs a ratio above 0"),
        ("balance:inf", "needs a ratio above 0"),
        ("balanced:0.1", "got 'balanced:0.1'"),
    ],
)
def test_bad_weights_are_explained(wrapped: Make, weight: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrapped(weight=weight)
    assert says in str(caught.value)


def test_a_run_stops_when_the_gradients_have_opposed_each_other_for_long(wrapped: Make) -> None:
    schedule = ("conflict", {"below": -0.1, "patience": 3, "interval": 2})
    policy = wrapped(schedule=schedule)
    handle = policy.spatial_forcing
    for step in range(9):
        policy(tiny_batch())[0].backward()
        if handle.weighting.meter.table is not None:
            assert step % 2 == 0, "measured where it watches only"
            handle.weighting.meter.take(torch.device("cpu"))
            handle.weighting.meter.add(0, torch.tensor([1.0, 1.0, -0.5 if step else 0.5, 1.0]))
    assert [s.state() for s in handle.weighting.schedule] == [{"mean": pytest.approx(-1 / 6), "count": 3, "stopped": 1}]
    assert handle.status().factor == 0
    assert handle.runners[0]._model is None


def test_gradients_of_a_bfloat16_policy_are_summed_in_float32(wrapped: Make) -> None:
    meter = GradientMeter(1)
    meter.live = True
    tokens = torch.ones(1, 1, 4096, dtype=torch.bfloat16, requires_grad=True) * 1
    (branch,) = meter.branches({Residual(1): (tokens,)}, 1.0)[Residual(1)]
    ((branch * 0.1).sum() + (tokens * 0.2).sum()).backward()
    sums = GradientSums.of(meter.take(torch.device("cpu")))
    one, both = (torch.tensor(value, dtype=torch.bfloat16) for value in (0.1, 0.2))
    assert sums.alignment.dtype == torch.float32
    assert float(sums.alignment) == pytest.approx(4096 * float(one) ** 2, rel=1e-5)
    assert float(sums.action) == pytest.approx(4096 * float((one + both).float() - one.float()) ** 2, rel=1e-5)


def test_the_action_loss_of_a_bfloat16_loop_is_logged_in_float32(tiny: Make) -> None:
    policy = SpatialForcing.wrap(
        plain := tiny(), "geometry", student_layer=2, adapter=TinyAdapter(plain), attach_loss="manual"
    )
    loss = policy(tiny_batch())[0].expand(2).to(torch.bfloat16) * torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    assert float(loss.detach().mean()) != float(loss.detach().float().mean()), "a mean in bfloat16 is rounded"
    policy.spatial_forcing.add(loss)
    assert policy.spatial_forcing.metrics()["action_loss"] == pytest.approx(
        float(loss.detach().float().mean()), rel=1e-6
    )
