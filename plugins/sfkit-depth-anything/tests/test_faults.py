"""Silent faults of the catalog, on these teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sfkit_depth_anything.tables import scaled_positions
from sfkit_depth_anything.teachers import DA3Base, DA3Giant

from sfkit import SpatialForcing
from sfkit.errors import CheckpointError, ViewsError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views

CPU = torch.device("cpu")


def test_fault_19_a_grid_that_is_not_square_stays_as_it_is(views_of: Callable[..., Views]) -> None:
    # 2 x 8 patches: as many as a square of 4 x 4.
    host = TeacherRunner(DA3Base({"config": "tiny", "size": 112}))
    (found,) = host.features(views_of([[True, True]], (28, 112)), [6], (4, 4))
    assert found.grid == (2, 8)


def test_fault_19_a_wide_view_reaches_the_students_own_grid() -> None:
    policy = TinyPolicy()
    SpatialForcing.wrap(
        policy, ("da3-base", {"config": "tiny", "size": 112}), adapter=TinyAdapter(policy), student_layer=2
    )
    batch = tiny_batch(2, 2, geometry=False)
    batch["images"] = torch.rand(2, 2, 3, 32, 128)  # a grid of 4 x 16 for the student, of 2 x 8 for the teacher
    host = SpatialForcing.of(policy.train()).runners[0]  # type: ignore[union-attr]
    seen: list[tuple[int, int]] = []
    encode = host.teacher.encode

    def spy(*arguments: Any) -> Any:
        maps = encode(*arguments)
        seen.extend(found.grid for found in maps)
        return maps

    host.teacher.encode = spy  # type: ignore[method-assign]
    loss, _ = policy(batch)
    assert loss.isfinite()
    assert seen == [(2, 8)]


@pytest.mark.parametrize("kind", [DA3Base, DA3Giant], ids=lambda kind: kind.name)
def test_fault_20_a_patch_moves_its_own_cell(kind: type[DA3Base], views_of: Callable[..., Views]) -> None:
    host = TeacherRunner(kind({"config": "tiny", "size": 56, "half": "local"}))
    views = views_of([[True, True]], (56, 42))
    (before,) = host.features(views, [1], (4, 3))
    for row, column in ((0, 2), (1, 0), (3, 1)):
        images = views.images.clone()
        patch = images[0, 1, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        patch.copy_(1 - patch)
        (after,) = host.features(Views(images, views.valid, views.names), [1], (4, 3))
        moved = (after.values - before.values).norm(dim=-1)[0]
        assert moved[0].max() == 0
        most = int(moved[1].argmax())
        assert divmod(most, before.grid[1]) == (row, column)


def test_fault_20_learned_positions_keep_rows_and_columns_apart() -> None:
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    table = torch.stack((rows, rows.T), -1).reshape(1, 16, 2)
    found = scaled_positions(table, (3, 6)).reshape(3, 6, 2)
    assert_rounded(found[:, :1, 0].expand(3, 6), found[..., 0])
    assert_rounded(found[:1, :, 1].expand(3, 6), found[..., 1])
    assert (found[1:, 0, 0] > found[:-1, 0, 0]).all()
    assert (found[0, 1:, 1] > found[0, :-1, 1]).all()


# Not shrunk: each example runs a network many times.
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 99))
def test_fault_23_an_absent_view_changes_nothing_in_real_ones(
    views_of: Callable[..., Views], present: list[list[bool]], seed: int
) -> None:
    """Also not which view is the reference, which is chosen among the present ones."""
    host = TeacherRunner(DA3Base({"config": "tiny", "size": 42}))
    views = views_of(present, (42, 42), seed)
    (whole,) = host.features(views, [6], (3, 3))
    assert torch.equal(whole.mask[..., 0, 0], torch.tensor(present))
    changed = views.images.clone()
    changed[~torch.tensor(present)] = torch.rand(3, 42, 42, generator=torch.Generator().manual_seed(seed + 1))
    (again,) = host.features(Views(changed, views.valid, views.names), [6], (3, 3))
    assert torch.equal(whole.values, again.values)
    for sample, row in enumerate(present):
        columns = [view for view, there in enumerate(row) if there]
        if columns:
            (alone,) = host.features(views.select(torch.tensor([sample]), columns), [6], (3, 3))
            assert_rounded(whole.values[sample, columns], alone.values[0])


def test_fault_23_the_reference_is_chosen_among_the_present(
    views_of: Callable[..., Views], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfkit_depth_anything.reference import saddle_balanced

    asked: list[int] = []

    def spy(tokens: torch.Tensor) -> torch.Tensor:
        asked.append(tokens.shape[1])
        return saddle_balanced(tokens)

    monkeypatch.setattr("sfkit_depth_anything.backbone.saddle_balanced", spy)
    layout = [[True] * 4, [True, False, True, True], [True, False, False, True]]
    TeacherRunner(DA3Base({"config": "tiny", "size": 42})).features(views_of(layout, (42, 42)), [6], (3, 3))
    assert sorted(asked) == [3, 4]  # and not for the sample with two


def test_fault_23_masked_pixels_change_nothing(views_of: Callable[..., Views]) -> None:
    host = TeacherRunner(DA3Base({"config": "tiny", "size": 56}))
    views = views_of([[True] * 3])
    valid = views.valid.clone()
    valid[..., :14, :] = False  # letterbox
    changed = torch.where(valid.unsqueeze(2), views.images, 1 - views.images)
    (before,), (after,) = (host.features(Views(x, valid, views.names), [6], (4, 4)) for x in (views.images, changed))
    assert torch.equal(before.values, after.values)


@pytest.mark.parametrize("scale", ["-1 to 1", "0 to 255", "normalized", "NaN"])
def test_fault_26_images_outside_0_1_are_refused(views_of: Callable[..., Views], scale: str) -> None:
    views = views_of([[True, True]])
    images = {
        "-1 to 1": views.images * 2 - 1,
        "0 to 255": views.images * 255,
        "normalized": (views.images - 0.45) / 0.225,
        "NaN": torch.where(views.images > 0.9, torch.nan, views.images),
    }[scale]
    with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
        TeacherRunner(DA3Base({"config": "tiny", "size": 56})).features(
            Views(images, views.valid, views.names), [1], (4, 4)
        )


def test_fault_26_images_are_normalized_exactly_once(views_of: Callable[..., Views]) -> None:
    teacher, views = DA3Base({"config": "tiny", "size": 56}), views_of([[True, True]])
    backbone = teacher.load(CPU)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = backbone((views.images - mean[:, None, None]) / std[:, None, None], [6])[0]
    (found,) = TeacherRunner(teacher).features(views, [6], (4, 4))
    assert_rounded(found.values, wanted)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(f"model.backbone.pretrained.{name}")


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (without("blocks.3.attn.q_norm.bias"), r"missing \(1\): model\.backbone\.pretrained\.blocks\.3\.attn"),
    "unexpected": (
        lambda tensors: tensors.update({"model.backbone.pretrained.blocks.6.ls1.gamma": torch.ones(32)}),
        r"unexpected \(1\): model\.backbone\.pretrained\.blocks\.6",
    ),
    "shape": (
        lambda tensors: tensors.update({"model.backbone.pretrained.camera_token": torch.ones(1, 2, 16)}),
        r"camera_token is \(1, 2, 16\), expected \(1, 2, 32\)",
    ),
    "foreign": (lambda tensors: tensors.update({"model.extra.weight": torch.ones(1)}), r"unexpected.*model\.extra"),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_fault_29_a_file_that_does_not_fit_is_refused(checkpoint: Callable[..., Any], fault: str) -> None:
    change, said = CHANGES[fault]
    path, _ = checkpoint(change=change)
    with pytest.raises(CheckpointError, match=said):
        DA3Base({"config": "tiny", "weights": str(path)}).load(CPU)


def test_fault_29_a_renamed_prefix_is_refused(checkpoint: Callable[..., Any]) -> None:
    path, _ = checkpoint()
    save_file({key.replace("pretrained", "encoder"): value for key, value in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="holds no backbone of a multi-view Depth Anything 3"):
        DA3Base({"config": "tiny", "weights": str(path)}).load(CPU)
