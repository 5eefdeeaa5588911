"""What the teacher is shown must be what the student sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sfkit_lerobot import image_stats
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch

from sfkit.errors import AdapterError, ShapeError, ViewsError
from sfkit.training.checks import check_views

FRONT, WRIST = CAMERAS
SIDE = "observation.images.side"
SIZES = [(48, 64), (64, 48), (37, 61), (100, 30), (96, 128), (63, 65), (57, 56), (56, 56), (64, 64), (20, 20)]


def _coordinates(h: int, w: int) -> torch.Tensor:
    """An image whose red is the column, whose green is the row, and whose blue is 1: padding has none."""
    columns, rows = torch.arange(w) / 256, torch.arange(h) / 256
    return torch.stack([columns.expand(h, w), rows[:, None].expand(h, w), torch.ones(h, w)])


@pytest.mark.parametrize("size", SIZES)
def test_fault_24_the_letterbox_is_where_the_policy_puts_it(kind, size, build, adapter_of, views_of) -> None:
    policy = build(kind, image_shape=(3, *size))
    batch = tiny_lerobot_batch(policy, batch_size=1)
    batch[FRONT] = _coordinates(*size)[None]
    views = views_of(adapter_of(policy), batch)
    picture, valid = views.images[0, 0], views.valid[0, 0]
    assert torch.equal(valid, picture[2] > 0.5)
    assert bool(picture[:, ~valid].abs().max() < 1e-6) if (~valid).any() else True

    inverse = torch.linalg.inv(views.source_to_view[0, 0].double())
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in views.size), indexing="ij")
    x, y, _ = torch.einsum("ij,jhw->ihw", inverse, torch.stack([columns, rows, torch.ones_like(rows)]))
    # At the border bilinear interpolation clamps to the outermost pixel, as these do.
    x, y = x.clamp(0, size[1] - 1) / 256, y.clamp(0, size[0] - 1) / 256
    torch.testing.assert_close(picture[0][valid], x.float()[valid], atol=2e-5, rtol=0)
    torch.testing.assert_close(picture[1][valid], y.float()[valid], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind_", "size", "expected"),
    [
        ("smolvla", (48, 64), [[0] * 4, [1] * 4, [1] * 4, [1] * 4]),  # 16 rows of padding at the top
        ("smolvla", (64, 48), [[0, 1, 1, 1]] * 4),
        ("pi0", (48, 64), [[0] * 4, [1] * 4, [1] * 4, [0] * 4]),  # 7 rows above and below: half a token each
        ("pi0", (64, 48), [[0, 1, 1, 0]] * 4),
        ("pi05", (48, 64), [[0] * 4, [1] * 4, [1] * 4, [0] * 4]),
        ("pi05", (64, 48), [[0, 1, 1, 0]] * 4),
    ],
)
def test_fault_24_letterbox_tokens_are_masked(kind_, size, expected, build, adapter_of, tapped) -> None:
    policy = build(kind_, image_shape=(3, *size))
    _, _, student = tapped(adapter_of(policy), tiny_lerobot_batch(policy), 1)
    assert student.values.shape == (2, 2, 4, 4, 64)
    assert student.mask.int().tolist() == [[expected] * 2] * 2


@pytest.mark.parametrize("cameras", [(FRONT,), CAMERAS, (*CAMERAS, SIDE)])
def test_one_to_three_cameras(kind, cameras, build, adapter_of, tapped) -> None:
    policy = build(kind, cameras=cameras)
    _, views, student = tapped(adapter_of(policy), tiny_lerobot_batch(policy, batch_size=1), 2)
    assert views.names == cameras
    assert student.values.shape == (1, len(cameras), 4, 4, 64)
    assert bool(student.mask.all())


def test_fault_25_views_follow_the_policy_not_the_batch(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    batch = tiny_lerobot_batch(policy)
    views = views_of(adapter_of(policy), dict(reversed(batch.items())))
    assert views.names == (FRONT, WRIST)
    torch.testing.assert_close(views.images[:, 0], batch[FRONT])
    torch.testing.assert_close(views.images[:, 1], batch[WRIST])


@pytest.mark.parametrize("pi", ["pi0", "pi05", "pi0_fast"])
def test_fault_25_pi0_puts_a_missing_camera_last(pi, build, adapter_of, tapped) -> None:
    policy = build(pi, cameras=(*CAMERAS, SIDE))
    batch = tiny_lerobot_batch(policy, missing=[FRONT], geometry=True)
    _, views, student = tapped(adapter_of(policy), batch, 0)
    assert views.names == (WRIST, SIDE, FRONT)
    assert views.present.tolist() == [[True, True, False]] * 2
    assert student.mask.flatten(2).all(-1).tolist() == [[True, True, False]] * 2
    assert views.depth is not None
    assert bool((views.depth[:, 2] == 0).all())
    assert bool((views.depth[:, :2] > 0).all())


def test_fault_25_smolvla_drops_a_missing_camera(build, adapter_of, tapped) -> None:
    policy = build("smolvla", cameras=(*CAMERAS, SIDE))
    _, views, student = tapped(adapter_of(policy), tiny_lerobot_batch(policy, missing=[FRONT]), 0)
    assert views.names == (WRIST, SIDE)
    assert student.values.shape[1] == 2


@pytest.mark.parametrize("empty", [1, 2])
def test_fault_25_smolvla_with_empty_cameras(empty, build, adapter_of, tapped) -> None:
    policy = build("smolvla", empty_cameras=empty)
    _, views, student = tapped(adapter_of(policy), tiny_lerobot_batch(policy, missing=[FRONT]), 0)
    names = (WRIST, FRONT, "observation.images.empty_camera_0")
    assert views.names == names[: 1 + empty]
    assert student.mask.flatten(2).any(-1).tolist() == [[True] + [False] * empty] * 2


def test_smolvla_padding_masks_are_honored(build, adapter_of, tapped) -> None:
    policy = build("smolvla")
    batch = {**tiny_lerobot_batch(policy), f"{WRIST}_padding_mask": torch.tensor([True, False])}
    _, views, student = tapped(adapter_of(policy), batch, 1)
    assert views.present.tolist() == [[True, True], [True, False]]
    assert torch.equal(student.mask.flatten(2).all(-1), views.present)


def test_smolvla_takes_the_last_of_several_frames(build, adapter_of, views_of) -> None:
    policy = build("smolvla")
    batch = tiny_lerobot_batch(policy, geometry=True)
    frames = {key: torch.stack([value.flip(0), value], 1) for key, value in batch.items() if "images" in key}
    assert frames[FRONT].shape == (2, 2, 3, 64, 64)
    assert frames[f"{FRONT}_depth"].shape == (2, 2, 1, 64, 64)
    adapter = adapter_of(policy)
    single, several = views_of(adapter, batch), views_of(adapter, {**batch, **frames})
    assert torch.equal(single.images, several.images)
    assert torch.equal(single.depth, several.depth)


def test_smolvla_markers_around_images_are_no_visual_tokens(build, adapter_of, tapped) -> None:
    plain, marked = build("smolvla"), build("smolvla", add_image_special_tokens=True)
    batch = tiny_lerobot_batch(plain)
    hidden, _, student = tapped(adapter_of(plain), batch, 0)
    marked_hidden, _, marked_student = tapped(adapter_of(marked), batch, 0)
    assert marked_hidden.shape[1] == hidden.shape[1] + 2 * 3
    torch.testing.assert_close(marked_student.values, student.values)


def test_smolvla_padding_of_the_prefix_is_at_its_end(build, adapter_of, tapped) -> None:
    plain, padded = build("smolvla"), build("smolvla", prefix_length=60)
    batch = tiny_lerobot_batch(plain)
    _, _, student = tapped(adapter_of(plain), batch, 0)
    hidden, _, padded_student = tapped(adapter_of(padded), batch, 0)
    assert hidden.shape[1] == 60
    torch.testing.assert_close(padded_student.values, student.values)


def test_smolvla_without_resize_has_the_grid_of_the_picture(build, adapter_of, tapped) -> None:
    policy = build("smolvla", resize_imgs_with_padding=None, image_shape=(3, 32, 32))
    _, views, student = tapped(adapter_of(policy), tiny_lerobot_batch(policy), 1)
    assert views.size == (32, 32)
    assert student.grid == (2, 2)
    assert torch.equal(views.source_to_view[0, 0], torch.eye(3))


def test_smolvla_image_sizes_unfit_for_shuffle_are_refused(build, adapter_of, views_of) -> None:
    policy = build("smolvla", resize_imgs_with_padding=None, image_shape=(3, 32, 128))
    batch = tiny_lerobot_batch(policy)
    policy(batch)  # 4 x 16 patches are the square of 8, so that SmolVLA itself does not complain
    with pytest.raises(AdapterError, match="scrambles"):
        views_of(adapter_of(policy), batch)
    with pytest.raises(AdapterError, match="multiple of 16"):
        adapter_of(build("smolvla", resize_imgs_with_padding=(64, 48)))


@pytest.mark.parametrize("pi", ["pi0", "pi05", "pi0_fast"])
def test_pi0_views_that_do_not_divide_into_patches_are_refused(pi, build, adapter_of) -> None:
    with pytest.raises(AdapterError, match=f"{pi} gets views of 60x60 .* patches of 14"):
        adapter_of(build(pi, image_resolution=(60, 60)))


def test_views_of_different_sizes_are_refused(build, adapter_of, views_of) -> None:
    policy = build("smolvla", resize_imgs_with_padding=None)
    batch = tiny_lerobot_batch(policy)
    batch[WRIST] = batch[WRIST][..., :32, :32]
    with pytest.raises(ViewsError, match="different sizes"):
        views_of(adapter_of(policy), batch)


def test_views_need_no_text(kind, build, adapter_of, views_of) -> None:
    policy = build(kind)
    batch = {key: value for key, value in tiny_lerobot_batch(policy).items() if "images" in key}
    assert views_of(adapter_of(policy), batch).images.shape[:2] == (2, 2)


def test_fault_16_a_sequence_of_another_length_is_an_error(kind, build, adapter_of, tapped) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    hidden, views, _ = tapped(adapter, tiny_lerobot_batch(policy), 1)
    with pytest.raises(ShapeError, match="expected"):
        adapter.visual_tokens(torch.cat([hidden[:, :1], hidden], 1), views)


def _normalized(batch, mode, stats):
    """As LeRobot's own preprocessor does it."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import NormalizerProcessorStep

    step = NormalizerProcessorStep(
        features={key: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for key in CAMERAS},
        norm_map={FeatureType.VISUAL: NormalizationMode(mode)},
        stats={key: {name: torch.tensor(v).view(3, 1, 1) for name, v in s.items()} for key, s in stats.items()},
    )
    return {**batch, **step._normalize_observation({key: batch[key] for key in CAMERAS}, inverse=False)}


STATS = {
    key: {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "min": (0.0, 0.05, 0.1),
        "max": (1.0, 0.9, 0.8),
        "q01": (0.01, 0.02, 0.03),
        "q99": (0.99, 0.98, 0.97),
    }
    for key in CAMERAS
}


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES"])
def test_fault_26_normalization_of_pictures_is_undone(kind, mode, build, adapter_of, views_of) -> None:
    from lerobot.configs.types import NormalizationMode

    identity = build(kind, image_shape=(3, 48, 64))
    batch = tiny_lerobot_batch(identity)
    mapping = {"VISUAL": NormalizationMode(mode), "STATE": NormalizationMode.IDENTITY}
    policy = build(kind, image_shape=(3, 48, 64), normalization_mapping=mapping)
    normalized = _normalized(batch, mode, STATS)
    assert float(normalized[FRONT].min()) < -0.5
    expected = views_of(adapter_of(identity), batch)
    found = views_of(adapter_of(policy, image_stats=STATS), normalized)
    torch.testing.assert_close(found.images, expected.images, atol=1e-5, rtol=0)
    check_views(found)


def test_fault_26_unknown_statistics_are_an_error(kind, build, adapter_of, views_of) -> None:
    from lerobot.configs.types import NormalizationMode

    policy = build(kind, normalization_mapping={"VISUAL": NormalizationMode.MEAN_STD})
    batch = tiny_lerobot_batch(policy)
    with pytest.raises(ViewsError, match=r"statistics of .*front \(mean, std\).*\n.*image_stats"):
        views_of(adapter_of(policy), batch)
    with pytest.raises(ViewsError, match=r"\(std\)"):
        views_of(adapter_of(policy, image_stats={FRONT: {"mean": (0.5, 0.5, 0.5)}}), batch)


@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_fault_26_pictures_outside_0_to_1_are_an_error(kind, scale, build, wrap) -> None:
    # pi0 clamps what it resizes: looked at afterward, such images would be black or white, and in range.
    policy = wrap(build(kind, image_shape=(3, 48, 64)))
    batch = tiny_lerobot_batch(policy, geometry=True)
    batch[FRONT] = batch[FRONT] * scale
    with pytest.raises(ViewsError, match="range"):
        policy(batch)


def test_image_stats_of_a_dataset_leave_depth_out() -> None:
    stats = {FRONT: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1), "count": [7]}}
    depth = f"{FRONT}_depth"
    dataset = SimpleNamespace(
        meta=SimpleNamespace(camera_keys=[FRONT, depth], depth_keys=[depth], stats={**stats, depth: stats[FRONT]})
    )
    assert image_stats(dataset) == {FRONT: {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}}
