"""Silent faults that a joint teacher invites."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.teacher import Vggt
from torch import nn

from sfkit import SpatialForcing
from sfkit.errors import ViewsError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap, Views

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


@pytest.fixture
def host() -> TeacherRunner:
    return TeacherRunner(Vggt({"config": "tiny"}))


class SquareAdapter(TinyAdapter):
    """A student that sees views of any aspect as a square of tokens."""

    def visual_tokens(self, hidden: torch.Tensor, views: Views) -> FeatureMap:
        return resample(super().visual_tokens(hidden, views), (4, 4))


def test_fault_19_an_oblong_teacher_grid_fits_a_square_student(
    host: TeacherRunner, make_views: Callable[..., Views]
) -> None:
    (found,) = host.features(make_views([[True]], (32, 64)), (4,), (4, 4))
    assert found.grid == (2, 4)
    square = resample(found, (4, 4))
    assert square.mask.sum() == 16
    # Rows are doubled, columns stay what they are.
    assert_rounded(square.values[:, :, 0], found.values[:, :, 0])
    assert_rounded(square.values[:, :, 3], found.values[:, :, 1])

    policy = TinyPolicy()
    policy = SpatialForcing.wrap(policy, host.teacher, adapter=SquareAdapter(policy))
    policy.train()
    batch = tiny_batch(geometry=False)
    batch["images"] = torch.rand(2, 2, 3, 32, 64)
    _, logs = policy(batch)
    assert 0 < logs["sf_loss"] < 2


@pytest.mark.parametrize("cell", [(0, 0), (0, 3), (2, 0), (1, 2)])
def test_fault_20_the_cell_that_moves_is_the_patch_that_moved(
    host: TeacherRunner, make_views: Callable[..., Views], cell: tuple[int, int]
) -> None:
    views = make_views([[True, True]], (42, 56))
    row, column = cell
    images = views.images.clone()
    images[:, 1, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] *= 0.2
    (before,) = host.features(views, (1,), (3, 4))  # deeper, attention spreads it
    (after,) = host.features(replace(views, images=images), (1,), (3, 4))
    moved = (after.values - before.values).norm(dim=-1)[0]
    assert before.grid == (3, 4)
    assert int(moved.argmax()) == 12 + row * 4 + column


def test_fault_23_a_blank_camera_never_touches_real_ones(host: TeacherRunner, make_views: Callable[..., Views]) -> None:
    ragged = [[True, True, False], [False, True, True], [True, False, False], [False] * 3, [True] * 3]
    views = make_views(ragged)
    (whole,) = host.features(views, (4,), (4, 4))
    present = torch.tensor(ragged)
    assert torch.equal(whole.mask[..., 0, 0], present)
    for sample, pattern in enumerate(ragged):
        columns = [i for i, there in enumerate(pattern) if there]
        if columns:
            (alone,) = host.features(views.select(torch.tensor([sample]), columns), (4,), (4, 4))
            assert_rounded(whole.values[sample, columns], alone.values[0])
    for content in (0.0, torch.nan):
        blank = replace(views, images=views.images.where(present[:, :, None, None, None], content))
        (again,) = host.features(blank, (4,), (4, 4))
        assert torch.equal(whole.values[present], again.values[present])


@pytest.mark.parametrize(
    "spoil",
    [lambda x: x * 2 - 1, lambda x: (x - MEAN) / STD, lambda x: x * 255, lambda x: x.where(x < 0.9, torch.nan)],
    ids=["[-1,1]", "ImageNet", "[0,255]", "NaN"],
)
def test_fault_26_the_teacher_refuses_images_outside_0_1(
    host: TeacherRunner, make_views: Callable[..., Views], spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    views = make_views([[True, True]])
    with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
        host.features(replace(views, images=spoil(views.images)), (4,), (4, 4))


def test_fault_26_the_backbone_normalizes_exactly_once(backbone: Aggregator) -> None:
    images = torch.rand(1, 2, 3, 28, 42)
    wanted = backbone.patch_embed((images[0] - MEAN) / STD)
    assert_rounded(backbone.embed(images)[:, 5:], wanted)


def test_fault_28_the_teacher_is_frozen_and_not_in_the_policy(
    tiny_policy: Callable[..., nn.Module], weights: Path
) -> None:
    policy = tiny_policy(("vggt", {"config": "tiny", "weights": str(weights)}))
    policy.train()
    before = set(policy.state_dict())
    policy(tiny_batch())[0].backward()
    policy.train().bfloat16().float()
    handle = SpatialForcing.of(policy)
    assert handle is not None
    network = handle.runners[0]._model
    assert isinstance(network, Aggregator)
    assert not any(module.training for module in network.modules())
    own = list(network.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in own)
    stored = {value.data_ptr() for value in (*policy.parameters(), *policy.buffers())}
    assert not stored & {parameter.data_ptr() for parameter in own}
    assert set(policy.state_dict()) == before
    assert not any(isinstance(module, Aggregator) for module in policy.modules())
    saved = Vggt({"config": "tiny", "weights": str(weights)}).load(torch.device("cpu")).state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())
    assert copy.deepcopy(handle).runners[0]._model is network


def test_fault_36_rotary_tables_do_not_depend_on_earlier_calls(
    new_backbone: Callable[..., Aggregator],
) -> None:
    images = torch.rand(1, 2, 3, 56, 56)
    with torch.no_grad():
        exact, rounded = (new_backbone(round_angles=option)(images, [4])[0] for option in (False, True))
        assert (exact - rounded).abs().max() > 1e-5
        for first in (False, True):
            backbone = new_backbone()
            for option in (first, not first, first):
                backbone.round_angles = option
                (found,) = backbone(images, [4])
                assert torch.equal(found, rounded if option else exact)


def test_fault_36_autocast_does_not_round_the_tables(new_backbone: Callable[..., Aggregator]) -> None:
    backbone, other = new_backbone(), new_backbone()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = backbone.rope((4, 4), 2, torch.device("cpu"))
    for one, wanted in zip(coarse, other.rope((4, 4), 2, torch.device("cpu")), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, wanted)


def test_fault_36_rounding_is_an_option_and_off(make_views: Callable[..., Views]) -> None:
    views = make_views([[True, True]])
    maps = {}
    for option in (False, True):
        teacher = Vggt({"config": "tiny", "round_rope_angles": option})
        assert teacher.build().round_angles is option
        (maps[option],) = TeacherRunner(teacher).features(views, (4,), (4, 4))
    (default,) = TeacherRunner(Vggt({"config": "tiny"})).features(views, (4,), (4, 4))
    assert torch.equal(default.values, maps[False].values)
    assert not torch.equal(maps[False].values, maps[True].values)


@pytest.mark.parametrize("from_file", [False, True])
def test_fault_51_loading_and_encoding_draw_no_random_numbers(
    tiny_policy: Callable[..., nn.Module], weights: Path, from_file: bool
) -> None:
    options: dict[str, Any] = {"config": "tiny", **({"weights": str(weights)} if from_file else {})}
    torch.manual_seed(0)
    plain = TinyPolicy()
    plain.train()
    plain_loss, _ = plain(tiny_batch())
    after = torch.get_rng_state()
    policy = tiny_policy(("vggt", options))
    policy.train()
    _, logs = policy(tiny_batch())
    assert logs["action_loss"] == plain_loss.item()
    assert torch.equal(torch.get_rng_state(), after)


def test_fault_51_a_teacher_on_its_own_draws_none_either(make_views: Callable[..., Views]) -> None:
    views = make_views([[True]])
    before = torch.get_rng_state()
    teacher = Vggt({"config": "tiny"})
    network = teacher.load(torch.device("cpu"))
    teacher.encode(network.eval(), views, (4,), (4, 4))
    assert torch.equal(torch.get_rng_state(), before)
