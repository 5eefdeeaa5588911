"""A user's default dtype reaches no part of the alignment: projectors, heads, transforms and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.teachers.geometry import GeometryTeacher
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.utils.runtime import float32_by_default

Make = Callable[..., TinyPolicy]
others = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype, "the default is the user's"
    finally:
        torch.set_default_dtype(before)


def run(make: Make, policy: TinyPolicy, dtype: torch.dtype, **arguments: Any) -> dict[str, torch.Tensor]:
    """Three steps under a default dtype: all figures, parameters and statistics."""
    batches = [tiny_batch(seed=seed) for seed in range(3)]
    with default(dtype):
        SpatialForcing.wrap(policy, adapter=TinyAdapter(policy), **arguments)
        optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = policy(batch)[0]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        handle = policy.spatial_forcing
        measured = {**handle.metrics(), "health": hash(str(handle.health())) % 2**32}
        figures = torch.tensor([*measured.values()], dtype=torch.float64).nan_to_num(-7.0)
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    assert {b.dtype for b in handle.buffers()} <= {torch.float32, torch.bool}
    statistics = {f"teacher.{k}": v for runner in handle.runners for k, v in runner.teacher.state().items()}
    return {**policy.state_dict(), **statistics, "losses": torch.stack(losses), "figures": figures}


@others
@pytest.mark.parametrize(
    "arguments",
    [
        {"teacher": "geometry", "student_layer": 2, "weight": "balance:0.3", "health": {"every": 1}},
        {
            "teacher": ("geometry", {"features": ["points", "normals", "offsets"], "flatness": 9.0}),
            "student_layer": 1,
            "objective": "angular-scale",
            "projector": "conv",
            "transforms": [("random-projection", {"dim": 8}), "position-code"],
        },
        {
            "teacher": "geometry",
            "student_layer": 2,
            "objective": "info-nce",
            "transforms": ["spatial-norm", ("pca", {"dim": 4})],
            "attach_loss": "backward",
        },
    ],
)
def test_training_does_not_depend_on_the_default_dtype(tiny: Make, dtype: torch.dtype, arguments: Any) -> None:
    # Bit-identical: nothing in the alignment may be rounded to the default.
    torch.manual_seed(0)
    expected = run(tiny, tiny(), torch.float32, **arguments)
    torch.manual_seed(0)
    found = run(tiny, tiny(), dtype, **arguments)
    assert found.keys() == expected.keys()
    different = [key for key in expected if not torch.equal(expected[key], found[key])]
    assert different == []


@others
def test_a_policy_of_the_default_dtype_trains(tiny: Make, dtype: torch.dtype) -> None:
    try:
        torch.nn.functional.layer_norm(torch.ones(2, 2, dtype=dtype), (2,))
    except RuntimeError:
        pytest.skip(f"this release of torch has no LayerNorm in {dtype} on the CPU")
    read = ("images", "state", "action")
    batch = {key: value.to(dtype) if key in read else value for key, value in tiny_batch().items()}
    with default(dtype):
        policy = tiny()
        SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy))
        policy(batch)[0].backward()
    gradient = policy.get_parameter("spatial_forcing.pairs.0.projector.fc1.weight").grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert bool(gradient.isfinite().all())
    assert bool(gradient.ne(0).any())


@others
def test_statistics_that_are_fitted_before_are_float32(dtype: torch.dtype) -> None:
    views = TinyAdapter(TinyPolicy()).views(Call(tiny_batch()))
    teachers = GeometryTeacher(), GeometryTeacher()
    teachers[0].fit([(views, (4, 4))])
    with default(dtype):
        teachers[1].fit([(views, (4, 4))])
    one, two = (teacher.state() for teacher in teachers)
    assert all(torch.equal(one[key], two[key]) for key in one)


class Call:
    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.arguments = {"batch": batch}


def test_the_default_comes_back_after_an_error() -> None:
    @float32_by_default()
    def fail() -> None:
        assert torch.zeros(()).dtype == torch.float32
        raise KeyError

    with default(torch.float64), pytest.raises(KeyError):
        fail()
