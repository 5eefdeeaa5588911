"""What all objectives promise, and the values of each on cases small enough for pencil and paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfkit.errors import ConfigError, ShapeError
from sfkit.factory.components import build_objective
from sfkit.objectives.base import Objective, cosine_similarity
from sfkit.projectors.standard import MLPProjector
from sfkit.registry.registry import default_registry
from sfkit.training.pair import AlignmentPair
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap

ALL: dict[str, Any] = {
    "cosine": "cosine",
    "mse": "mse",
    "mse length": ("mse", {"normalize": "length"}),
    "mse none": ("mse", {"normalize": "none"}),
    "smooth-l1": "smooth-l1",
    "info-nce view": ("info-nce", {"negatives": "view"}),
    "info-nce sample": "info-nce",
    "info-nce batch": ("info-nce", {"negatives": "batch"}),
    "info-nce devices": ("info-nce", {"negatives": "devices"}),
    "relational within": "relational",
    "relational across": ("relational", {"scope": "across", "distance": "l1", "margin": 0.05}),
    "relational all": ("relational", {"scope": "all"}),
    "angular-scale": "angular-scale",
    "angular-scale absolute": ("angular-scale", {"relative": False}),
    "attention": "attention",
    "attention first head": ("attention", {"heads": 1}),
    "sum": ("sum", {"terms": [("cosine", 1.0), (("relational", {"scope": "all"}), 0.5), ("angular-scale", 0.2)]}),
}
ATTENTION = {"attention", "attention first head"}
TEACHER_SCALE_MATTERS = {"mse none", "angular-scale absolute"} | ATTENTION
STUDENT_SCALE_MATTERS = {"mse none"} | ATTENTION
OTHER_SAMPLES_MATTER = {"info-nce batch", "info-nce devices"}
ZERO_AT_EQUALITY = [
    name for name in ALL if not name.startswith(("info-nce", "angular-scale", "sum"))
]  # the others have a head that must be trained first, or a minimum above 0

few = settings(max_examples=10)
every = pytest.mark.parametrize("name", ALL)


def case(seed: int = 0, b: int = 3, dim: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, features and a mask, which leaves the second sample nothing, and the third a single token."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(b, 2, 2, 3, dim, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    mask = torch.rand(b, 2, 2, 3, generator=g) > 0.3
    mask[:, 0, 0, :2] = True
    mask[:, 1, 0, 0] = True
    if b > 1:
        mask[1] = False
    if b > 2:
        mask[2] = False
        mask[2, 1, 1, 2] = True
    return student, teacher, mask


def head_of(objective: Objective, dim: int = 6, dtype: torch.dtype = torch.float64) -> nn.Module | None:
    torch.manual_seed(5)
    if objective.reads == "attention":
        return objective.attention_head((dim // 2, 1), (dim // 2, 1))
    head = objective.head(dim)
    return None if head is None else head.to(dtype)


def loss_of(name: str, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    objective = build_objective(ALL[name])
    return objective.with_head(student, teacher, mask, head_of(objective, student.shape[-1], student.dtype))


def test_every_registered_objective_is_tried() -> None:
    assert {name.split()[0] for name in ALL} == {entry.name for entry in default_registry().of_kind("objective")}


@every
def test_one_loss_for_each_sample_and_at_least_0(name: str) -> None:
    loss = loss_of(name, *case())
    assert loss.shape == (3,)
    assert (loss >= -1e-9).all()
    assert loss[0] > 0


@every
@few
@given(seed=st.integers(0, 1000))
def test_fault_21_what_stands_in_masked_tokens_does_not_matter(name: str, seed: int) -> None:
    student, teacher, mask = case(seed)
    wanted = loss_of(name, student, teacher, mask)
    other = case(seed + 1)
    student, teacher = (
        torch.where(mask.unsqueeze(-1), x, 9 * y) for x, y in ((student, other[0]), (teacher, other[1]))
    )
    assert torch.allclose(loss_of(name, student, teacher, mask), wanted, rtol=1e-9, atol=1e-12)


@every
@few
@given(order=st.permutations(range(3)), seed=st.integers(0, 1000))
def test_samples_may_come_in_any_order(name: str, order: list[int], seed: int) -> None:
    student, teacher, mask = case(seed)
    moved = loss_of(name, student[order], teacher[order], mask[order])
    assert torch.allclose(moved, loss_of(name, student, teacher, mask)[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ALL.keys() - OTHER_SAMPLES_MATTER))
@few
@given(seed=st.integers(0, 1000))
def test_a_sample_alone_has_the_loss_that_it_has_in_a_batch(name: str, seed: int) -> None:
    student, teacher, mask = case(seed)
    alone = [loss_of(name, student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert torch.allclose(loss_of(name, student, teacher, mask), torch.cat(alone), rtol=1e-9, atol=1e-12)


@every
@few
@given(power=st.integers(-2, 6), seed=st.integers(0, 1000))
def test_the_scale_of_features_matters_only_where_it_is_meant_to(name: str, power: int, seed: int) -> None:
    student, teacher, mask = case(seed)
    wanted, factor = loss_of(name, student, teacher, mask), 2.0**power
    if name not in STUDENT_SCALE_MATTERS:
        assert torch.allclose(loss_of(name, factor * student, teacher, mask), wanted, rtol=1e-3, atol=1e-5)
    if name not in TEACHER_SCALE_MATTERS | {"angular-scale", "sum"}:
        assert torch.allclose(loss_of(name, student, factor * teacher, mask), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
@few
@given(seed=st.integers(0, 1000))
def test_equal_features_have_no_loss(name: str, seed: int) -> None:
    student, _, mask = case(seed)
    assert loss_of(name, student, student.clone(), mask).abs().max() < 1e-9


@few
@given(seed=st.integers(0, 1000))
def test_angular_scale_is_0_at_equal_features(seed: int) -> None:
    _, teacher, mask = case(seed)
    teacher = F.normalize(teacher, dim=-1)  # the head is given directions
    head = nn.Linear(6, 6).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(6))
        head.bias.zero_()
    for relative in (True, False):
        objective = build_objective(("angular-scale", {"relative": relative}))
        assert objective.with_head(3 * teacher, teacher, mask, head).abs().max() < 1e-9
        assert objective.with_head(3 * teacher.roll(1, -1), teacher, mask, head)[0] > 1e-3


@few
@given(seed=st.integers(0, 1000))
def test_a_sum_of_what_is_zero_at_equality_is_zero_there(seed: int) -> None:
    _, teacher, mask = case(seed)
    total = build_objective(("sum", {"terms": [("cosine", 1.0), ("relational", 0.5), ("smooth-l1", 2.0)]}))
    assert total(teacher, teacher.clone(), mask).abs().max() < 1e-9
    assert total(teacher.roll(1, -1), teacher, mask)[0] > 1e-3


@pytest.mark.parametrize("name", ["info-nce view", "info-nce sample", "info-nce batch", "info-nce devices"])
@few
@given(seed=st.integers(0, 1000))
def test_info_nce_prefers_the_teachers_own_features(name: str, seed: int) -> None:
    student, teacher, mask = case(seed, b=1)
    assert loss_of(name, teacher, teacher, mask) < loss_of(name, student, teacher, mask)


@pytest.mark.parametrize("name", ["info-nce view", "info-nce sample", "info-nce batch"])
@few
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_info_nce_is_least_where_every_patch_has_its_own_feature(name: str, order: list[int], seed: int) -> None:
    # Of all ways to hand the teacher's features out within a view: log sum exp is the same, and cos(t, t) the largest.
    _, teacher, _ = case(seed, b=1)
    mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    mixed = teacher.flatten(2, 3)[:, :, order].unflatten(2, (2, 3))
    gap = float(loss_of(name, mixed, teacher, mask) - loss_of(name, teacher, teacher, mask))
    assert gap > -1e-9
    assert order == sorted(order) or gap > 1e-6


@every
@few
@given(student_power=st.integers(-30, 30), teacher_power=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_bfloat16_of_any_size_is_finite_and_so_are_its_gradients(
    name: str, student_power: int, teacher_power: int, seed: int
) -> None:
    student, teacher, mask = case(seed, dtype=torch.bfloat16)
    student, teacher = (student * 2.0**student_power).requires_grad_(), teacher * 2.0**teacher_power
    objective = build_objective(ALL[name])
    loss = objective.with_head(student, teacher, mask, head_of(objective, dtype=torch.float32))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@every
@settings(max_examples=3)
@given(seed=st.integers(0, 1000))
def test_gradients_are_those_of_the_formula(name: str, seed: int) -> None:
    student, teacher, mask = case(seed, b=2)
    objective = build_objective(ALL[name])
    head = head_of(objective)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective.with_head(x, teacher, mask, head), (student,))
    for parameter in head.parameters() if head is not None else ():
        objective.with_head(student, teacher, mask, head).sum().backward()
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@every
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher, mask = case(dtype=torch.bfloat16)
    objective = build_objective(ALL[name])
    head = head_of(objective, dtype=torch.float32)
    found = objective.with_head(student, teacher, mask, head)
    assert found.dtype == torch.float32
    assert torch.equal(found, objective.with_head(student.float(), teacher.float(), mask, head))


def aligned(name: str, student: FeatureMap, teacher: FeatureMap) -> tuple[Tensor, AlignmentPair]:
    objective = build_objective(ALL[name])
    torch.manual_seed(3)
    projector = MLPProjector(6, 6)
    for bias in (projector.fc1.bias, projector.fc2.bias):
        nn.init.normal_(bias)  # a projected zero is then no zero
    pair = AlignmentPair(projector, objective, head=head_of(objective, dtype=torch.float32))
    return pair(student, teacher).loss, pair


@every
def test_fault_21_nan_in_masked_tokens_reaches_no_objective(name: str) -> None:
    values, teacher, mask = case(dtype=torch.float32)
    whole = FeatureMap(teacher, torch.ones_like(mask))
    wanted, _ = aligned(name, FeatureMap(values, mask), whole)
    poisoned = values.clone()
    poisoned[~mask] = torch.nan
    teacher = teacher.clone()
    teacher[~mask] = torch.inf
    poisoned.requires_grad_()
    loss, pair = aligned(name, FeatureMap(poisoned, mask), FeatureMap(teacher, mask))
    assert torch.equal(loss, wanted)
    loss.sum().backward()
    assert poisoned.grad is not None
    assert (poisoned.grad[~mask] == 0).all()
    assert poisoned.grad.isfinite().all()
    assert poisoned.grad[0].abs().max() > 0
    for parameter in pair.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@every
def test_fault_21_masked_tokens_get_no_gradient_of_an_objective(name: str) -> None:
    student, teacher, mask = case()
    student.requires_grad_()
    loss_of(name, student, teacher, mask).sum().backward()
    assert student.grad is not None
    assert (student.grad[~mask] == 0).all()


@every
def test_fault_22_without_valid_tokens_loss_and_gradient_are_0(name: str) -> None:
    student, teacher, mask = case()
    for valid in (mask, torch.zeros_like(mask)):
        tokens = student.clone().requires_grad_()
        loss = loss_of(name, tokens, teacher, valid)
        assert loss[1] == 0
        with torch.autograd.set_detect_anomaly(True):  # not even on the way back
            loss_of(name, tokens, teacher, valid).sum().backward()
        assert tokens.grad is not None
        assert (tokens.grad[1] == 0).all()
        assert tokens.grad.isfinite().all()
    assert (loss == 0).all()


@every
def test_fault_22_gradients_at_zero_tokens_are_finite(name: str) -> None:
    student, teacher, mask = case(dtype=torch.float32)
    student[0, 0, 0, 0] = 0
    teacher[0, 0, 0, 1] = 0
    student.requires_grad_()
    loss = loss_of(name, student, teacher, mask)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------ values by hand


def tokens(*rows: tuple[float, ...], views: int = 1) -> tuple[Tensor, Tensor]:
    """``(1, views, 1, n, d)`` and a mask of ones."""
    values = torch.tensor(rows, dtype=torch.float64).reshape(1, views, 1, len(rows) // views, -1)
    return values, torch.ones(values.shape[:-1], dtype=torch.bool)


def test_mse_by_hand() -> None:
    student, mask = tokens((3, 4), (1, -1))
    teacher, _ = tokens((1, 0), (2, 4))
    # Plain: ((3-1)^2 + 4^2) / 2 = 10 and (1 + 25) / 2 = 13.
    assert build_objective(("mse", {"normalize": "none"}))(student, teacher, mask).item() == 11.5
    # Length: 2 (1 - cos), with cosines 3/5 and (2 - 4) / sqrt(2 * 20).
    wanted = ((2 - 6 / 5) + (2 + 4 / math.sqrt(40))) / 2
    assert build_objective(("mse", {"normalize": "length"}))(student, teacher, mask).item() == pytest.approx(wanted)
    # Layer: two channels become (-1, 1) or (1, -1); the first token agrees in neither channel, nor does the second.
    assert build_objective("mse")(student, teacher, mask).item() == pytest.approx(4, rel=1e-5)


def test_smooth_l1_by_hand() -> None:
    student, mask = tokens((0.5, 3.0))
    teacher, _ = tokens((0.0, 0.0))
    for beta, wanted in ((1.0, (0.125 + 2.5) / 2), (0.25, (0.375 + 2.875) / 2), (4.0, (0.03125 + 1.125) / 2)):
        objective = build_objective(("smooth-l1", {"normalize": "none", "beta": beta}))
        assert objective(student, teacher, mask).item() == pytest.approx(wanted)


def test_info_nce_by_hand() -> None:
    student, mask = tokens((1, 0), (0, 2), (-1, 0))
    teacher, _ = tokens((3, 0), (0, 1), (5, 5))
    mask[0, 0, 0, 2] = False
    objective = build_objective(("info-nce", {"temperature": 0.5}))
    # Two valid tokens, cosines 1 with the own and 0 with the other feature: log(e^2 + e^0) - 2 for each.
    assert objective(student, teacher, mask).item() == pytest.approx(math.log(math.exp(2) + 1) - 2)


def test_info_nce_takes_the_configured_negatives() -> None:
    same, mask = tokens(*[(1.0, 2.0)] * 12, views=2)
    pair, valid = same.expand(3, -1, -1, -1, -1), mask.expand(3, -1, -1, -1)
    # All features alike: no token can be recognized among the others.
    for negatives, count in (("view", 6), ("sample", 12), ("batch", 36), ("devices", 36)):
        loss = build_objective(("info-nce", {"negatives": negatives}))(pair, pair, valid)
        assert torch.allclose(loss, torch.full((3,), math.log(count), dtype=torch.float64))


def test_relational_by_hand() -> None:
    student, mask = tokens((1, 0), (0, 1), (1, 1), (2, 0), views=2)
    teacher, _ = tokens((0, 3), (0, 1), (1, 0), (1, 1), views=2)
    half = math.sqrt(0.5)
    # Cosines of the pairs 01, 23 (within views), 02, 03, 12, 13 (across); student, then teacher.
    one = torch.tensor([0, half, half, 1, half, 0])
    two = torch.tensor([1, half, 0, half, 0, half])
    gaps = (one - two).abs().double()
    for scope, part in (("within", gaps[:2]), ("across", gaps[2:]), ("all", gaps)):
        for distance, wanted in (("l1", part.mean()), ("mse", part.square().mean())):
            objective = build_objective(("relational", {"scope": scope, "distance": distance}))
            assert objective(student, teacher, mask).item() == pytest.approx(wanted.item(), abs=1e-6)
    margin = build_objective(("relational", {"scope": "all", "distance": "l1", "margin": 0.5}))
    assert margin(student, teacher, mask).item() == pytest.approx((gaps - 0.5).clamp(min=0).mean().item(), abs=1e-6)


@few
@given(seed=st.integers(0, 1000))
def test_relational_does_not_see_a_common_rotation(seed: int) -> None:
    student, teacher, mask = case(seed)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    objective = build_objective(("relational", {"scope": "all"}))
    turned, plain = objective(student @ turn, teacher, mask), objective(student, teacher, mask)
    assert torch.allclose(turned, plain, atol=1e-9)


def test_angular_scale_by_hand() -> None:
    student, mask = tokens((3, 4), (0, 2))
    teacher, _ = tokens((2, 0), (0, 1))
    objective = build_objective(("angular-scale", {"scale_weight": 0.5}))
    head = objective.head(2)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(2 * torch.eye(2))
        head.bias.zero_()
    # Directions (.6, .8) and (0, 1), doubled (1.2, 1.6) and (0, 2): squared errors .64 + 2.56 and 1, of 4 and 1.
    wanted = 0.4 / 2 + 0.5 * (3.2 + 1) / (4 + 1)
    assert objective.with_head(student, teacher, mask, head.double()).item() == pytest.approx(wanted)
    absolute = build_objective(("angular-scale", {"scale_weight": 0.5, "relative": False}))
    assert absolute.with_head(student, teacher, mask, head).item() == pytest.approx(0.2 + 0.5 * 4.2 / 4)
    with pytest.raises(ConfigError, match="needs its head"):
        objective(student, teacher, mask)


def test_attention_by_hand() -> None:
    # One head of one channel; queries before keys. Three patches, the last one masked.
    student, mask = tokens((1, 0), (2, math.log(3) / 2), (7, 7))
    teacher, _ = tokens((math.log(2), 1, 0, 0), (0, 0, 0, 0), (9, 9, 9, 9))
    mask[0, 0, 0, 2] = False
    objective = build_objective("attention")
    head = objective.attention_head((1, 1), (1, 2))

    def divergence(wanted: tuple[float, float], own: tuple[float, float]) -> float:
        return sum(w * math.log(w / o) for w, o in zip(wanted, own, strict=True))

    # Student: logits (0, log(3) / 2) and (0, log 3). Teacher: queries (log 2, 1) and (0, 0), keys (0, 0): all equal.
    half = math.sqrt(3)
    wanted = (divergence((0.5, 0.5), (1 / (1 + half), half / (1 + half))) + divergence((0.5, 0.5), (0.25, 0.75))) / 2
    assert objective.with_head(student, teacher, mask, head).item() == pytest.approx(wanted)
    teacher[0, 0, 0, 0, 2:] = torch.tensor([1.0, 0.0])  # the first key: logits (log 2, 0) of the first patch
    first = divergence((2 / 3, 1 / 3), (1 / (1 + half), half / (1 + half)))
    again = (first + divergence((0.5, 0.5), (0.25, 0.75))) / 2
    assert objective.with_head(student, teacher, mask, head).item() == pytest.approx(again)


@few
@given(seed=st.integers(0, 1000))
def test_attention_takes_the_first_heads_of_either_side(seed: int) -> None:
    student, teacher, mask = case(seed)  # 3 heads of 1 channel against 1 head of 3
    objective = build_objective("attention")
    head = objective.attention_head((3, 1), (1, 3))
    other = student.clone()
    other[..., [1, 2, 4, 5]] = 9.0
    found = objective.with_head(student, teacher, mask, head)
    assert torch.equal(objective.with_head(other, teacher, mask, head), found)
    with pytest.raises(ConfigError, match=r"heads=2; student and teacher have 3 and 1\.\n.*heads=1"):
        build_objective(("attention", {"heads": 2})).attention_head((3, 1), (1, 3))
    with pytest.raises(ConfigError, match="needs its head"):
        objective(student, teacher, mask)
    with pytest.raises(ConfigError, match="'attention' reads attention: it cannot stand in a sum"):
        build_objective(("sum", {"terms": [("cosine", 1.0), ("attention", 1.0)]}))


@few
@given(seed=st.integers(0, 1000))
def test_attention_resampled_is_the_resampling_of_its_logits(seed: int) -> None:
    # What allows queries and keys to travel as maps: bringing them to a grid is linear in both.
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    queries, keys = (torch.randn(1, 1, 4, 4, 3, generator=g) for _ in range(2))
    small = resample(FeatureMap(torch.cat([queries, keys], -1), mask), (2, 3)).values.flatten(1, 3)
    logits = torch.einsum("bic,bjc->bij", queries.flatten(1, 3), keys.flatten(1, 3))
    rows = resample(FeatureMap(logits.reshape(1, 1, 4, 4, 16), mask), (2, 3)).values.reshape(1, 6, 16)
    both = resample(FeatureMap(rows.mT.reshape(1, 1, 4, 4, 6), mask), (2, 3)).values.reshape(1, 6, 6).mT
    assert torch.allclose(small[..., :3] @ small[..., 3:].mT, both, atol=1e-5)


@few
@given(seed=st.integers(0, 1000), weights=st.lists(st.floats(0, 10), min_size=2, max_size=2).filter(any))
def test_a_sum_is_the_sum(seed: int, weights: list[float]) -> None:
    student, teacher, mask = case(seed)
    total = build_objective(("sum", {"terms": [("cosine", weights[0]), ("mse", weights[1])]}))(student, teacher, mask)
    parts = (build_objective(name)(student, teacher, mask) for name in ("cosine", "mse"))
    assert torch.allclose(total, sum(w * part for w, part in zip(weights, parts, strict=True)), rtol=1e-6, atol=1e-12)


def test_a_sum_is_written_out_and_built_again() -> None:
    spec = build_objective(ALL["sum"]).spec
    relational = {"name": "relational", "options": {"scope": "all", "distance": "mse", "margin": 0.0}}
    assert spec.options["terms"][1] == {"objective": relational, "weight": 0.5}
    assert build_objective(spec).spec == spec


@pytest.mark.parametrize(
    "terms", [[], [("cosine", -1.0)], [("cosine", math.nan)], [("cosine", 0.0)], [("cosinus", 1.0)], ["cosine"]]
)
def test_bad_sums_are_refused(terms: list[Any]) -> None:
    with pytest.raises(ConfigError):
        build_objective(("sum", {"terms": terms}))


def test_what_cannot_be_compared_is_refused() -> None:
    student, mask = tokens((1, 2))
    for negatives in ("view", "sample", "batch", "devices"):
        with pytest.raises(ShapeError, match="finds no negative in the"):
            build_objective(("info-nce", {"negatives": negatives}))(student, student, mask)
    attention = build_objective("attention")
    with pytest.raises(ShapeError, match="nothing to attend to in 1 x 1 tokens"):
        attention.with_head(student, student, mask, attention.attention_head((1, 1), (1, 1)))
    with pytest.raises(ShapeError, match="no pair of patches"):
        build_objective("relational")(student, student, mask)
    student, mask = tokens((1, 2), (3, 4))
    with pytest.raises(ShapeError, match="no pair of patches in 1 views"):
        build_objective(("relational", {"scope": "across"}))(student, student, mask)


def test_cosine_is_what_it_was() -> None:
    student, teacher, mask = case(dtype=torch.float32)
    wanted = (1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-6)).masked_fill(~mask, 0)
    wanted = wanted.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    assert torch.equal(build_objective("cosine")(student, teacher, mask), wanted)


def test_cosine_similarity_has_the_gradient_of_its_formula() -> None:
    a, b = torch.randn(2, 5, 7, dtype=torch.float64).unbind(0)
    a, b = a.requires_grad_(), b.requires_grad_()
    upstream = torch.randn(5, dtype=torch.float64)
    plain = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    found = cosine_similarity(a, b)
    assert torch.allclose(found, plain, rtol=1e-12)
    for mine, wanted in zip(
        torch.autograd.grad(found, [a, b], upstream), torch.autograd.grad(plain, [a, b], upstream), strict=True
    ):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(cosine_similarity, (a, b))
    assert torch.autograd.gradgradcheck(cosine_similarity, (a, b))


def test_the_gradient_of_cosine_similarity_is_finite_at_0() -> None:
    a, b = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    similarity = cosine_similarity(a, b)
    similarity.sum().backward()
    assert torch.equal(similarity, torch.zeros(2))
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert (a.grad > 0).all(), "toward the target"
    (first,) = torch.autograd.grad(cosine_similarity(a, b).sum(), a, create_graph=True)
    assert torch.autograd.grad(first.sum(), a)[0].isfinite().all()
