"""The pure training step: masks, gradients, precision."""

from __future__ import annotations

import pytest
import torch

from sfkit.errors import ShapeError
from sfkit.objectives.distances import CosineObjective
from sfkit.projectors.standard import MLPProjector
from sfkit.testing.checks import assert_rounded
from sfkit.training.pair import AlignmentPair
from sfkit.views.types import FeatureMap


def maps(b: int = 3, grid: int = 4, ds: int = 8, dt: int = 6) -> tuple[FeatureMap, FeatureMap, MLPProjector]:
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(b, 2, grid, grid, generator=g) > 0.3
    student = torch.randn(b, 2, grid, grid, ds, generator=g).requires_grad_()
    teacher = torch.randn(b, 2, grid, grid, dt, generator=g)
    return FeatureMap(student, mask), FeatureMap(teacher, torch.ones_like(mask)), MLPProjector(ds, dt)


def test_against_a_transcription_of_the_formula() -> None:
    # L = 1/B sum_b [1 - mean_{i in M_b} cos(P(h_bi), t_bi)], arXiv 2510.12276 with the released code's constant.
    student, teacher, projector = maps()
    result = AlignmentPair(projector, CosineObjective())(student, teacher)
    for b in range(3):
        picked = student.mask[b]
        p, t = projector(student.values, student.mask)[b][picked], teacher.values[b][picked]
        cosine = (p * t).sum(-1) / (p.norm(dim=-1) * t.norm(dim=-1))
        assert_rounded(result.loss[b], 1 - cosine.mean())
    assert result.valid == student.mask.float().mean()


def test_fault_21_nan_in_masked_tokens_reaches_neither_loss_nor_gradient() -> None:
    student, teacher, projector = maps()
    clean = AlignmentPair(projector, CosineObjective())(student, teacher).loss.sum()
    (wanted,) = torch.autograd.grad(clean, student.values)
    hidden = student.values.detach().clone()
    hidden[~student.mask] = torch.nan
    poisoned = FeatureMap(hidden.requires_grad_(), student.mask)
    target = teacher.values.clone()
    target[~student.mask] = torch.nan
    loss = AlignmentPair(projector, CosineObjective())(poisoned, FeatureMap(target, teacher.mask)).loss.sum()
    loss.backward()
    assert torch.equal(loss, clean)
    assert torch.equal(hidden.grad, wanted)  # type: ignore[arg-type]
    assert all(parameter.grad.isfinite().all() for parameter in projector.parameters())


def test_fault_21_nan_where_only_the_teacher_is_masked() -> None:
    student, teacher, projector = maps()
    mask = teacher.mask.clone()
    mask[:, :, 0] = False
    target = torch.where(mask.unsqueeze(-1), teacher.values, torch.nan)
    loss = AlignmentPair(projector, CosineObjective())(student, FeatureMap(target, mask)).loss.sum()
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in projector.parameters())
    assert student.values.grad.isfinite().all()  # type: ignore[union-attr]
    assert (student.values.grad[:, :, 0] == 0).all()  # type: ignore[index]


def test_fault_21_nan_where_a_masked_teacher_is_resampled() -> None:
    student, teacher, projector = maps()
    values = teacher.values.repeat_interleave(2, 2).repeat_interleave(2, 3)
    mask = torch.ones(values.shape[:-1], dtype=torch.bool)
    mask[:, :, :4] = False
    values[:, :, :4] = torch.nan
    result = AlignmentPair(projector, CosineObjective())(student, FeatureMap(values, mask))
    result.loss.sum().backward()
    assert result.loss.isfinite().all()
    assert (result.loss > 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in projector.parameters())
    assert student.values.grad.isfinite().all()  # type: ignore[union-attr]


def test_fault_22_a_sample_without_a_valid_token_contributes_zero() -> None:
    student, teacher, projector = maps()
    mask = student.mask.clone()
    mask[1] = False
    result = AlignmentPair(projector, CosineObjective())(FeatureMap(student.values, mask), teacher)
    assert result.loss[1] == 0
    result.loss.sum().backward()
    assert (student.values.grad[1] == 0).all()  # type: ignore[index]
    nothing = AlignmentPair(projector, CosineObjective())(FeatureMap(student.values, torch.zeros_like(mask)), teacher)
    assert (nothing.loss == 0).all()
    assert nothing.cosine.isnan()
    assert nothing.valid == 0


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher, projector = maps()
    target = teacher.values.requires_grad_()
    AlignmentPair(projector, CosineObjective())(student, FeatureMap(target, teacher.mask)).loss.sum().backward()
    assert target.grad is None


def test_low_precision_and_autocast_are_computed_in_float32() -> None:
    student, teacher, projector = maps()
    exact = AlignmentPair(projector, CosineObjective())(
        FeatureMap(student.values.bfloat16(), student.mask), teacher
    ).loss
    with torch.autocast("cpu", torch.bfloat16):
        auto = AlignmentPair(projector, CosineObjective())(
            FeatureMap(student.values.bfloat16(), student.mask), teacher
        ).loss
    assert auto.dtype == torch.float32
    assert torch.equal(auto, exact)


def test_misfits_are_shape_errors() -> None:
    student, teacher, projector = maps()
    with pytest.raises(ShapeError, match="batch, views"):
        AlignmentPair(projector, CosineObjective())(student, FeatureMap(teacher.values[:2], teacher.mask[:2]))
    with pytest.raises(ShapeError, match="projector maps 8 to 6"):
        AlignmentPair(projector, CosineObjective())(student, FeatureMap(teacher.values[..., :5], teacher.mask))


def test_identical_maps_are_at_the_minimum() -> None:
    values = torch.randn(2, 1, 3, 3, 5)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    assert torch.allclose(CosineObjective()(values, 2 * values, mask), torch.zeros(2), atol=1e-6)
    assert torch.allclose(CosineObjective()(values, -values, mask), torch.full((2,), 2.0), atol=1e-6)
