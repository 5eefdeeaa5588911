"""What is made again in backward: the same gradients to the last bit, less in memory, random numbers left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sfkit import SpatialForcing
from sfkit.config import Recompute
from sfkit.errors import ConfigError, GradientError
from sfkit.factory.components import build_objective
from sfkit.objectives.distances import CosineObjective
from sfkit.objectives.pairwise import InfoNCEObjective
from sfkit.projectors.base import Projector
from sfkit.projectors.standard import MLPProjector, NestedProjector, SiLUMLPProjector
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.pair import AlignmentPair
from sfkit.utils import recompute as scoped
from sfkit.utils.recompute import recompute_scope, recomputed
from sfkit.views.types import FeatureMap

MODES: tuple[Recompute, ...] = ("none", "selective", "full")
PAIRS = [(layer, "geometry") for layer in (1, 2, 3)]


class DroppingProjector(MLPProjector):
    """With random numbers of its own."""

    name = "dropping"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(tokens, mask), 0.5)


class Names(TorchDispatchMode):
    """Of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def maps() -> tuple[FeatureMap, FeatureMap]:
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(3, 2, 4, 4, generator=g) > 0.3
    student = torch.randn(3, 2, 4, 4, 8, generator=g)
    teacher = torch.randn(3, 2, 4, 4, 6, generator=g)
    student[~mask] = torch.nan
    return FeatureMap(student.requires_grad_(), mask), FeatureMap(teacher, torch.rand(mask.shape, generator=g) > 0.2)


def gradients(projector: Projector, recompute: Recompute, objective: Any = None) -> list[Tensor]:
    student, teacher = maps()
    torch.manual_seed(5)
    result = AlignmentPair(projector, objective or CosineObjective(), recompute=recompute)(student, teacher)
    return [result.loss, *torch.autograd.grad(result.loss.sum(), [student.values, *projector.parameters()])]


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("kind", [MLPProjector, NestedProjector, SiLUMLPProjector])
def test_loss_and_gradients_are_the_same_to_the_last_bit(kind: type[Projector], recompute: Recompute) -> None:
    projector = kind(8, 6)
    wanted, found = gradients(projector, "none"), gradients(projector, recompute)
    assert all(value.isfinite().all() for value in wanted)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_recomputing_draws_the_same_numbers_and_keeps_the_state() -> None:
    projector = DroppingProjector(8, 6)
    states = []
    for recompute in MODES:
        found = gradients(projector, recompute)
        states.append(torch.get_rng_state())
        if recompute == "none":
            wanted = found
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)), recompute
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_each_kind_of_operation_runs_as_often_as_it_is_said_to() -> None:
    counts = {}
    for recompute in MODES:
        student, teacher = maps()
        projector = MLPProjector(8, 6)
        loss = AlignmentPair(projector, CosineObjective(), recompute=recompute)(student, teacher).loss.sum()
        with Names() as run:
            loss.backward()
        counts[recompute] = {name: run.names.count(f"aten::{name}") for name in ("addmm", "gelu", "native_layer_norm")}
    assert counts["none"] == {"addmm": 0, "gelu": 0, "native_layer_norm": 0}
    assert counts["selective"] == {"addmm": 0, "gelu": 1, "native_layer_norm": 1}
    assert counts["full"] == {"addmm": 2, "gelu": 1, "native_layer_norm": 1}


def test_memory_of_ten_pairs_is_that_of_their_products_or_less() -> None:
    memory = pytest.importorskip("benchmarks.pairs_memory")
    grid, width = (2, 2, 8, 8), 64
    products = memory.of_products(grid, width, memory.nested_widths(10, width))
    held = {recompute: memory.of_pairs(grid, width, recompute) for recompute in MODES}
    assert held["none"].peak > 2 * products.peak, "or there is nothing to save"
    assert held["selective"].peak <= 1.15 * products.peak
    assert held["selective"].kept <= 1.15 * products.kept
    assert held["full"].kept < 0.05 * products.kept
    assert held["full"].peak < held["selective"].peak


def test_a_source_changed_in_place_is_an_error() -> None:
    weight, source = torch.randn(4, 4, requires_grad=True), torch.randn(4)
    with recomputed(lambda x: x * 2, source) as (doubled,):
        loss = (weight @ doubled).sum()
    source.add_(1)
    with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
        loss.backward()


def test_features_of_inference_mode_serve_as_well() -> None:
    projector = MLPProjector(8, 6)
    wanted = gradients(projector, "none")
    for recompute in MODES:
        student, teacher = maps()
        with torch.inference_mode():
            features = teacher.values.clone()
        result = AlignmentPair(projector, CosineObjective(), recompute=recompute)(
            student, FeatureMap(features, teacher.mask)
        )
        found = torch.autograd.grad(result.loss.sum(), [student.values, *projector.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(wanted[1:], found, strict=True))


@pytest.mark.parametrize("recompute", MODES)
@pytest.mark.parametrize("inference", [True, False])
def test_unmasked_maps_are_not_copied(recompute: Recompute, inference: bool) -> None:
    """Compared with the same batch where the last sample is masked, so that copies are made."""
    projector, found = MLPProjector(8, 6), {}
    student, teacher = torch.randn(3, 2, 4, 4, 8), torch.randn(3, 2, 4, 4, 6)
    with torch.inference_mode(inference):
        features = teacher.clone()
    for masked in (0, 1):
        tokens = student.clone().requires_grad_()
        mask = torch.ones(3, 2, 4, 4, dtype=torch.bool)
        mask[2] = not masked
        result = AlignmentPair(projector, CosineObjective(), recompute=recompute)(
            FeatureMap(tokens, mask), FeatureMap(features, mask)
        )
        gradients = torch.autograd.grad(result.loss[:2].sum(), [tokens, *projector.parameters()])
        found[masked] = [result.loss[:2], gradients[0][:2], *gradients[1:]]
    one, two = ({str(i): value for i, value in enumerate(each)} for each in (found[0], found[1]))
    assert_rounded(one, two)


@pytest.mark.parametrize("recompute", MODES)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_changed_in_place_is_an_error(recompute: Recompute, whole: bool) -> None:
    class InPlace(MLPProjector):
        name = "in-place"

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return super().forward(tokens.mul_(2), mask)

    student, teacher = torch.randn(1, 1, 2, 2, 8, requires_grad=True), torch.randn(1, 1, 2, 2, 6)
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = whole
    pair = AlignmentPair(InPlace(8, 6), CosineObjective(), recompute=recompute)
    with pytest.raises(GradientError, match="'in-place' or objective 'cosine' changed its input"):
        pair(FeatureMap(student * 1, mask), FeatureMap(teacher, mask))


@pytest.mark.parametrize("recompute", MODES)
def test_a_loss_alone_may_be_computed_in_inference_mode(recompute: Recompute) -> None:
    with torch.inference_mode():
        mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
        maps = FeatureMap(torch.randn(1, 1, 2, 2, 8), mask), FeatureMap(torch.randn(1, 1, 2, 2, 6), mask)
        result = AlignmentPair(MLPProjector(8, 6), CosineObjective(), recompute=recompute)(*maps)
    assert result.loss.isfinite().all()


def test_an_objective_with_collectives_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = InfoNCEObjective.__call__

    def counted(self: InfoNCEObjective, *args: Tensor) -> Tensor:
        calls.append(self.options.negatives)
        return plain(self, *args)

    monkeypatch.setattr(InfoNCEObjective, "__call__", counted)
    projector = MLPProjector(8, 6)
    for negatives in ("sample", "devices"):
        gradients(projector, "full", InfoNCEObjective({"negatives": negatives}))
        terms = [(("info-nce", {"negatives": negatives}), 1.0)]
        gradients(projector, "full", build_objective(("sum", {"terms": terms})))
    assert calls.count("sample") == 4
    assert calls.count("devices") == 2


def test_nothing_is_recomputed_out_of_scope_or_without_gradient() -> None:
    runs = []

    def function(x: Tensor) -> Tensor:
        runs.append(1)
        return x.exp().exp()

    x = torch.ones(3, requires_grad=True)
    scoped.recompute(function, x).sum().backward()
    with recompute_scope(), torch.no_grad():
        scoped.recompute(function, x)
    assert len(runs) == 2
    with recompute_scope():
        scoped.recompute(function, x).sum().backward()
    assert len(runs) == 4


def trained(policy: TinyPolicy) -> list[Tensor]:
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    for step in range(3):
        loss, _ = policy(tiny_batch(seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in policy.parameters()]


@pytest.mark.parametrize("shared", [True, False])
def test_policies_train_alike_and_what_was_chosen_is_saved(
    wrapped: Callable[..., TinyPolicy], tiny: Callable[..., TinyPolicy], tmp_path: Path, shared: bool
) -> None:
    made = {
        recompute: wrapped(pairs=PAIRS, projector="nested", shared_projector=shared, recompute=recompute)
        for recompute in (*MODES, "auto")
    }
    assert {name: policy.spatial_forcing.pairs[0].recompute for name, policy in made.items()} == {
        "none": "none", "selective": "selective", "full": "full", "auto": "selective",
    }  # fmt: skip
    results = {name: trained(policy) for name, policy in made.items()}
    for found in results.values():
        assert all(torch.equal(a, b) for a, b in zip(results["none"], found, strict=True))
    made["full"].spatial_forcing.save(tmp_path)
    plain = tiny()
    resumed = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain))
    assert resumed.spatial_forcing.pairs[0].recompute == "full"


def test_a_single_pair_keeps_everything_by_default(wrapped: Callable[..., TinyPolicy]) -> None:
    assert wrapped().spatial_forcing.pairs[0].recompute == "none"
    with pytest.raises(ConfigError, match="recompute"):
        wrapped(recompute="some")
