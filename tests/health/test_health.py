"""The health monitor in training: what it says of runs that are broken on purpose."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit import SpatialForcing
from sfkit.config import HealthOptions
from sfkit.errors import ConfigError, SfkitWarning
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.views.types import FeatureMap, Views

Make = Callable[..., TinyPolicy]
HEALTH = {"every": 2, "patience": 6}


def patchwork(seed: int, b: int = 6) -> dict[str, Tensor]:
    """A batch whose patches are of one color each, so that a token tells its own patch."""
    batch = tiny_batch(b=b, size=48, seed=seed)
    colors = torch.rand(b, 2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    batch["images"] = colors.repeat_interleave(8, 3).repeat_interleave(8, 4)
    return batch


def train(policy: TinyPolicy, steps: int = 12, lr: float = 1e-3, parameters: Any = None, first: int = 0) -> list[str]:
    """Train, and return what was warned of."""
    chosen = [p for p in (parameters or policy.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SfkitWarning)
        for step in range(first, first + steps):
            loss, _ = policy(patchwork(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [str(one.message) for one in caught if issubclass(one.category, SfkitWarning)]


class Constant(PatchTeacher):
    """One feature everywhere, or one for each place."""

    name = "constant"
    places = False

    def encode(self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: Any) -> list[FeatureMap]:
        found = super().encode(model, views, layers, grid)
        shape = found[0].values.shape
        each = torch.randn(*shape[2:], generator=torch.Generator().manual_seed(0))
        value = each if self.places else each[0, 0]
        return [FeatureMap(value.expand(shape).clone(), one.mask) for one in found]


class Places(Constant):
    name = "places"
    places = True


def test_a_healthy_run_is_measured_and_nothing_is_said(wrapped: Make) -> None:
    policy = wrapped(health=HEALTH)
    assert "nothing was measured yet" in str(policy.spatial_forcing.health())
    assert train(policy) == []
    health = policy.spatial_forcing.health()
    assert (health.step, health.every, health.warnings, health.reaches_policy) == (10, 2, (), True)
    assert 0 < health.ratio < 1
    assert -1 <= health.cosine <= 1
    (pair,), (layer,) = health.pairs, health.layers
    assert set(pair.cosine) == {"cam0", "cam1"}
    assert pair.mean_cosine == pytest.approx(policy.spatial_forcing.metrics()["sf_cosine"], abs=0.2)
    assert (pair.valid, pair.shift is None) == (1.0, False)
    assert 0 < pair.aligned_error < pair.shifted_error
    assert layer.ratio == pytest.approx(health.ratio)
    assert layer.drift > 0
    assert health.projector_movement > 0
    assert json.loads(json.dumps(health.as_dict()))["pairs"][0]["teacher"] == "patch"
    for word in ("gradient", "drift", "effective rank", "spatial correspondence", "projector moved", "cam1"):
        assert word in str(health)


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_frozen_backbone_is_named(wrapped: Make, when: str) -> None:
    policy = wrapped(health=HEALTH, self_check=when == "later")
    said = [] if when == "from the start" else train(policy, 5)
    assert said == []
    for part in (policy.embed, *policy.blocks[:2], policy.state_proj):
        part.requires_grad_(False)
    (said,) = train(policy, 8, first=5)
    assert "reaches no trainable parameter of the policy: only the projector learns" in said
    health = policy.spatial_forcing.health()
    assert health.reaches_policy is False
    assert health.warnings == (said.removeprefix("sfkit: "),), "once, and kept"


def test_fault_44_a_weight_of_100_is_named(wrapped: Make) -> None:
    policy = wrapped(weight=100.0, health=HEALTH)
    said = [one for one in train(policy, 20, lr=1e-4) if "dominates" in one]
    assert len(said) == 1
    assert "times the action gradient" in said[0]
    assert 'weight="balance:0.1"' in said[0]
    assert policy.spatial_forcing.health().ratio > 1


def test_fault_44_the_balance_keeps_alignment_from_dominating(wrapped: Make) -> None:
    policy = wrapped(weight="balance:0.1", pairs=[(2, PatchTeacher(), 1, 50.0)], health=HEALTH)
    assert train(policy, 20, lr=1e-4) == []
    assert policy.spatial_forcing.health().ratio == pytest.approx(0.1, rel=0.3)


class Opposed(TinyPolicy):
    """Its own loss drives the tokens where the target is not."""

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> Any:
        hidden, attend = self._embed(batch)
        for block in self.blocks[:2]:
            hidden = self._run(block, hidden, attend)
        self.blocks[2].input_layernorm(hidden)  # the tap at student layer 2
        away = torch.randn(16, generator=torch.Generator().manual_seed(0))
        loss = torch.nn.functional.cosine_similarity(hidden[:, :-1], away, dim=-1).mean()
        return loss, {}


def test_fault_44_opposed_gradients_are_named() -> None:
    policy = Opposed()
    SpatialForcing.wrap(
        policy, Constant({"dim": 16}), student_layer=2, weight=3.0, projector="identity", adapter=TinyAdapter(policy),
        health=HEALTH,
    )  # fmt: skip
    said = train(policy)
    assert sum("works against the action gradient (cosine -1.00)" in one for one in said) == 1
    assert policy.spatial_forcing.health().cosine == pytest.approx(-1, abs=1e-3)


class Shifted(TinyAdapter):
    """The span of visual tokens begins one token early."""

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        return super().visual_tokens(hidden.roll(1, 1), views)


@pytest.mark.parametrize("layer", [0, 2])
def test_fault_16_tokens_off_by_one_are_named(tiny: Make, layer: int) -> None:
    policy = tiny()
    SpatialForcing.wrap(policy, PatchTeacher(), student_layer=layer, adapter=Shifted(policy), health=HEALTH)
    (said,) = train(policy)
    assert "spatially shifted" in said
    assert "the token +0 rows and +1 columns away" in said
    assert policy.spatial_forcing.health().pairs[0].shift == (0, 1)


@pytest.mark.parametrize(
    ("teacher", "says"), [(Constant(), "all its tokens point the same way"), (Places(), "the same for every image")]
)
def test_a_constant_target_is_named(wrapped: Make, teacher: Any, says: str) -> None:
    said = [one for one in train(wrapped(teacher, health=HEALTH)) if "constant" in one]
    assert len(said) == 1
    assert says in said[0]


def test_an_unused_projector_is_named(wrapped: Make) -> None:
    policy = wrapped(health=HEALTH, self_check=False)
    own = {id(parameter) for parameter in policy.spatial_forcing.parameters()}
    (said,) = train(policy, parameters=[p for p in policy.parameters() if id(p) not in own])
    assert "The optimizer moves the policy and not the projector" in said
    assert policy.spatial_forcing.health().projector_movement == 0


def test_a_saturated_alignment_is_named(wrapped: Make) -> None:
    policy = wrapped(health={**HEALTH, "max_cosine": 0.9})
    said = train(policy, 60, lr=1e-2)
    assert [one for one in said if "The teacher can be stopped" in one]


def test_a_collapse_is_named(wrapped: Make) -> None:
    policy = wrapped(health=HEALTH)
    nn.init.zeros_(policy.spatial_forcing.pairs[0].projector.fc2.weight)
    nn.init.ones_(policy.spatial_forcing.pairs[0].projector.fc2.bias)
    said = train(policy, lr=1e-7)
    assert sum("have collapsed: effective rank" in one for one in said) == 1


def test_a_finding_that_comes_and_goes_is_not_worth_a_warning(wrapped: Make) -> None:
    policy = wrapped(health=HEALTH)
    handle = policy.spatial_forcing
    for step in range(16):
        policy(patchwork(step))[0].backward()
        if handle.monitor in handle.weighting.plan.observers:
            handle.weighting.meter.take(torch.device("cpu"))
            handle.weighting.meter.add(0, torch.tensor([4.0 if step % 6 else 0.1, 1.0, 0.0, 1.0]))
    assert handle.health().warnings == ()


def test_steps_between_measure_nothing(wrapped: Make, monkeypatch: Any) -> None:
    policy = wrapped(health={"every": 4}, self_check=False)
    looks: list[int] = []
    real = policy.spatial_forcing.monitor.aligned
    monkeypatch.setattr(
        policy.spatial_forcing.monitor,
        "aligned",
        lambda *a, **k: looks.append(policy.spatial_forcing.steps) or real(*a, **k),
    )
    train(policy, 9)
    assert looks == [0, 4, 8]
    assert policy.spatial_forcing.metrics().keys() >= {"sf_grad_ratio", "sf_grad_cosine"}


def test_the_figures_are_logged_once_for_each_measurement(wrapped: Make) -> None:
    policy = wrapped(health={"every": 3})
    logged = []
    for step in range(7):
        loss, info = policy(patchwork(step))
        loss.backward()
        logged.append("sf_grad_ratio" in info)
    assert logged == [False, True, False, False, True, False, False]


def test_the_monitor_changes_nothing_and_can_be_switched_off(wrapped: Make) -> None:
    on, off = wrapped(health={"every": 1}), wrapped(health={"every": 0})
    for step in range(3):
        for policy in (on, off):
            torch.manual_seed(step)
            policy(patchwork(step))[0].backward()
    one, two = ({n: p.grad for n, p in each.named_parameters() if p.grad is not None} for each in (on, off))
    assert_rounded(one, two)
    assert "the monitor is off" in str(off.spatial_forcing.health())


def test_with_a_schedule_it_measures_where_something_is_aligned(wrapped: Make) -> None:
    policy = wrapped(health={"every": 2}, schedule="every:3")
    train(policy, 8)
    assert policy.spatial_forcing.health().step == 6


def test_what_figures_refer_to_survives_a_resume(wrapped: Make, tiny: Make, tmp_path: Path) -> None:
    policy = wrapped("geometry", health=HEALTH)
    train(policy, 8, lr=1e-2)
    policy.spatial_forcing.save(tmp_path)
    plain = tiny()
    resumed: Any = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    assert resumed.spatial_forcing.config.health == HealthOptions(**HEALTH)
    for one in (policy, resumed):
        one(patchwork(8))[0].backward()
    before, after = (one.spatial_forcing.health() for one in (policy, resumed))
    assert before.projector_movement == pytest.approx(after.projector_movement)
    assert before.projector_movement > 0.01
    assert after.step == 8


def test_several_layers_and_teachers_each_have_their_figures(wrapped: Make) -> None:
    policy = wrapped(pairs=[(1, PatchTeacher(), 1), (2, PatchTeacher(), 3), (2, "geometry")], health=HEALTH)
    train(policy, 3)
    health = policy.spatial_forcing.health()
    assert [layer.student_layer for layer in health.layers] == [1, 2]
    assert [pair.name for pair in health.pairs] == [
        "student layer 1 -> patch layer 1", "student layer 2 -> patch layer 3", "student layer 2 -> geometry layer 1",
    ]  # fmt: skip
    assert [pair.shift is not None for pair in health.pairs] == [True, False, True], "once for each teacher"


def test_a_step_without_a_valid_token_is_unknown_and_not_wrong(wrapped: Make) -> None:
    policy = wrapped(health={"every": 1, "patience": 0})
    batch = patchwork(0)
    batch["present"] = torch.zeros(6, 2, dtype=torch.bool)
    with pytest.warns(SfkitWarning, match="No visual token"):
        policy(batch)[0].backward()
    health = policy.spatial_forcing.health()
    assert "unknown" in str(health)
    assert health.as_dict()["ratio"] is None
    policy.spatial_forcing._begin()
    assert policy.spatial_forcing.health().warnings == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": -1}, "every"),
        ({"conflict": 0.5}, "conflict"),
        ({"evry": 3}, "evry"),
        ({"max_grad_ratio": 0}, "max_grad_ratio"),
    ],
)
def test_bad_options_are_explained(wrapped: Make, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrapped(health=options)


def test_before_a_measurement_nothing_is_known(wrapped: Make) -> None:
    health = wrapped("geometry").spatial_forcing.health()
    assert health.step is None
    assert str(health)
