"""A component that breaks its contract is named, with what it returned and what it must (faults 71 and 72)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit.errors import ComponentError
from sfkit.objectives.base import Objective, masked_mean
from sfkit.objectives.distances import CosineObjective
from sfkit.projectors.standard import LinearProjector
from sfkit.testing.tiny import PatchTeacher, TinyPolicy, tiny_batch
from sfkit.training.contract import broken
from sfkit.views.types import FeatureMap

Make = Callable[..., TinyPolicy]


class Changed(PatchTeacher):
    """Its maps, or its network, are changed before it returns."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.change = change

    def encode(self, model: Any, *arguments: Any) -> Any:
        return self.change(super().encode(model, *arguments), model)


def nan_at_a_valid_token(maps: list[FeatureMap]) -> list[FeatureMap]:
    maps[0].values[0, 0, 0, 0, 0] = torch.nan
    return maps


def with_values(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def encode(maps: list[FeatureMap], model: Any) -> list[FeatureMap]:
        values = change(maps[0].values)
        return [FeatureMap(values, torch.ones(values.shape[:-1], dtype=torch.bool))]

    return encode


TEACHERS: dict[str, tuple[Callable[..., Any], str]] = {
    "no maps": (lambda maps, model: [], r"returned a list of 0\.\n.*a list of 1 FeatureMap"),
    "None": (lambda maps, model: None, "returned a NoneType"),
    "too many maps": (lambda maps, model: maps * 2, "returned a list of 2"),
    "a bare tensor": (lambda maps, model: maps[0].values, r"returned float32 of shape \(2, 2, 4, 4, 12\)"),
    "tensors": (lambda maps, model: [maps[0].values], r"returned float32 of shape .* for layer 3"),
    "one sample": (with_values(lambda x: x[:1]), r"of shape \(1, 2, 4, 4, 12\).*\n.*of shape \(2, 2, \*, \*, 12\)"),
    "one view": (with_values(lambda x: x[:, :1]), r"of shape \(2, 1, 4, 4, 12\)"),
    "another width": (with_values(lambda x: x[..., :5]), r"\(2, 2, 4, 4, 5\).*\n.*12\), as dim says"),
    "integers": (with_values(lambda x: x.long()), "built a map whose values has dtype torch.int64"),
    "an empty grid": (with_values(lambda x: x[:, :, :0]), r"\(2, 2, 0, 4, 12\)"),
    "a mask of another shape": (
        lambda maps, model: [replace(maps[0], mask=maps[0].mask[:, :, :1])],
        r"built a map whose mask has shape \(2, 2, 1, 4\), expected \(2, 2, 4, 4\)",
    ),
    "a mask of floats": (lambda maps, model: [replace(maps[0], mask=maps[0].mask.float())], "mask has dtype .*float32"),
    "NaN": (with_values(lambda x: x * torch.nan), "returned NaN or infinity for layer 3"),
    "one NaN": (lambda maps, model: nan_at_a_valid_token(maps), "returned NaN or infinity"),
    "infinity": (with_values(lambda x: x / 0), "returned NaN or infinity"),
    "training mode": (lambda maps, model: model.train() and maps, "put its network into training mode"),
    "a trainable network": (lambda maps, model: model.requires_grad_() and maps, "made its network trainable"),
}


@pytest.mark.parametrize("how", TEACHERS)
@pytest.mark.parametrize("absent", [False, True])
def test_fault_71_a_teacher_that_breaks_its_contract_is_named(wrapped: Make, how: str, absent: bool) -> None:
    change, says = TEACHERS[how]
    policy, batch = wrapped(Changed(change)), tiny_batch()
    if absent:  # each combination of cameras is another call
        if "shape" in says or "2, 2" in says:
            says = ""
        batch["present"] = torch.tensor([[True, True], [True, False]])
        if how in ("one sample", "one view"):  # of one sample there is one
            batch = {key: torch.cat([value, value]) for key, value in batch.items()}
    with pytest.raises(ComponentError, match=rf"Teacher 'patch' \(.*\.Changed\) .*{says}"):
        policy(batch)


@pytest.mark.parametrize("step", [3, 51])
def test_fault_71_later_steps_are_checked(wrapped: Make, step: int) -> None:
    teacher = Changed(lambda maps, model: maps)
    policy = wrapped(teacher)
    for _ in range(step - 1):
        policy(tiny_batch(b=1))
    teacher.change = TEACHERS["one NaN"][0] if step == 51 else TEACHERS["one sample"][0]
    with pytest.raises(ComponentError, match="Teacher 'patch'"):
        policy(tiny_batch())


def test_values_where_the_mask_is_false_may_be_anything(wrapped: Make) -> None:
    def blank(maps: list[FeatureMap], model: Any) -> list[FeatureMap]:
        maps[0].mask[:, :, 0] = False
        return [FeatureMap(torch.where(maps[0].mask.unsqueeze(-1), maps[0].values, torch.nan), maps[0].mask)]

    assert bool(wrapped(Changed(blank))(tiny_batch())[0].isfinite())


class Bent(LinearProjector):
    change: Callable[[Tensor], Any] = staticmethod(lambda x: x)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        return self.change(super().forward(tokens, mask))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[..., :7], r"float32 of shape \(2, 2, 4, 4, 7\).*\n.*\(2, 2, 4, 4, 12\), as its teacher_dim says"),
        (lambda x: x.flatten(2, 3), r"of shape \(2, 2, 16, 12\)"),
        (lambda x: x[:1], r"of shape \(1, 2, 4, 4, 12\)"),
        (lambda x: None, "returned a NoneType"),
        (lambda x: x / 0, "NaN or infinity"),
    ],
)
def test_fault_72_a_projector_that_breaks_its_contract_is_named(
    wrapped: Make, change: Callable[[Tensor], Any], says: str, recompute: str
) -> None:
    projector = Bent(16, 12)
    projector.change = change
    with pytest.raises(ComponentError, match=rf"Projector 'linear' \(.*Bent\) .*{says}"):
        wrapped(projector=projector, recompute=recompute)(tiny_batch())


class Odd(Objective):
    name = "odd"

    def __init__(self, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.compute = compute

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Any:
        return self.compute(student, teacher, mask)


def error(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


OBJECTIVES: dict[str, tuple[Callable[..., Any], str]] = {
    "a scalar": (lambda s, t, m: masked_mean(error(s, t), m).mean(), r"float32 of shape \(\).*\n.*shape \(2,\)"),
    "a loss for each view": (lambda s, t, m: error(s, t).mean((2, 3)), r"of shape \(2, 2\)"),
    "a number": (lambda s, t, m: 0.5, "a float"),
    "NaN": (lambda s, t, m: masked_mean(error(s, t), m) * torch.nan, "NaN or infinity"),
    "no gradient": (lambda s, t, m: masked_mean(error(s.detach(), t), m), "a loss without gradient"),
    "masked tokens": (lambda s, t, m: error(s, t).flatten(1).mean(1), "a loss that depends on masked tokens"),
    "masked targets": (lambda s, t, m: masked_mean(error(s, t), m) + t.flatten(1).mean(1), "depends on masked tokens"),
    "masked students": (lambda s, t, m: masked_mean(error(s, t), m) + s.flatten(1).std(1), "depends on masked tokens"),
}


@pytest.mark.parametrize("how", OBJECTIVES)
def test_fault_72_an_objective_that_breaks_its_contract_is_named(wrapped: Make, how: str) -> None:
    compute, says = OBJECTIVES[how]
    with pytest.raises(ComponentError, match=rf"Objective 'odd' \(.*Odd\) returned .*{says}"):
        wrapped(objective=Odd(compute))(tiny_batch())


def test_fault_72_an_empty_sample_has_a_loss_of_0(wrapped: Make) -> None:
    batch = {**tiny_batch(), "present": torch.tensor([[True, True], [False, False]])}
    objective = Odd(lambda s, t, m: masked_mean(error(s, t), m) + 1.0)
    with pytest.raises(ComponentError, match="not 0 for a sample without a valid token"):
        wrapped(objective=objective)(batch)


def test_fault_72_nan_of_a_later_step_is_named(wrapped: Make) -> None:
    objective = Odd(lambda s, t, m: masked_mean(error(s, t), m))
    policy = wrapped(objective=objective)
    for _ in range(51):
        policy(tiny_batch(b=1))
    objective.compute = OBJECTIVES["NaN"][0]
    with pytest.raises(ComponentError, match="Objective 'odd'"):
        policy(tiny_batch(b=1))


def test_a_policy_that_diverges_is_no_fault_of_a_component(wrapped: Make) -> None:
    policy = wrapped(self_check=True)
    policy(tiny_batch())
    with torch.no_grad():
        policy.embed.weight.fill_(torch.nan)
    policy(tiny_batch())


def test_the_checks_touch_no_random_state_and_no_head(wrapped: Make) -> None:
    class Drawing(CosineObjective):
        def head(self, dim: int) -> nn.Module:
            return nn.BatchNorm1d(dim)

        def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: Any) -> Tensor:
            clean = torch.where(mask.unsqueeze(-1), student, 0.0)
            return masked_mean(error(head(clean.flatten(0, 3)).view_as(student), teacher), mask)

    Drawing.from_cosine = None  # type: ignore[assignment, method-assign]
    states = []
    for check in (True, False):
        policy = wrapped(objective=Drawing(), self_check=check)
        torch.manual_seed(1)
        policy(tiny_batch())[0].backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        states.append([torch.get_rng_state(), *policy.state_dict().values(), *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_the_distribution_is_named_where_the_registry_knows_it() -> None:
    error = broken("objective", CosineObjective(), "returned nothing", "return something")
    assert str(error).startswith("Objective 'cosine' of spatial-forcing (sfkit.objectives.distances.CosineObjective)")
    own = type("Own", (CosineObjective,), {"__module__": "mine"})()
    assert str(broken("objective", own, "returned nothing", "return something")).startswith(
        "Objective 'cosine' (mine.Own)"
    )
