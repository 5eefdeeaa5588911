"""What is GR00T's own: images consumed by the preprocessor, and its many ways to make views of them."""

from __future__ import annotations

import json

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS, tiny_groot, tiny_groot_processors

from sfkit.errors import AdapterError, ViewsError

FRONT, WRIST = CAMERAS
STATS = {key: {"min": -torch.ones(4), "max": torch.ones(4)} for key in ("observation.state", "action")}


@pytest.fixture
def checkpoint(groot_base, tmp_path):
    """``checkpoint(**settings)``: the tiny checkpoint, whose preprocessor has other settings."""

    def checkpoint(**settings):
        for path in groot_base.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "processor_config.json").write_text(json.dumps({"processor_kwargs": settings}))
        return tmp_path

    return checkpoint


def seen(policy, raw, qwen, adapter_of, tapped, **options):
    """Batch, views and visual tokens of raw frames."""
    depth = {key: value for key, value in raw.items() if key.endswith("_depth")}
    process, _ = tiny_groot_processors(policy, qwen, STATS)
    batch = {**process({key: value for key, value in raw.items() if key not in depth}), **depth}
    _, views, student = tapped(adapter_of(policy, **options), batch, 1)
    return batch, views, student


def test_fault_25_views_are_in_the_order_of_the_checkpoint(checkpoint, qwen, frames, adapter_of, tapped) -> None:
    order = {"new_embodiment": {"video": {"modality_keys": ["wrist", "front"]}}}
    policy = tiny_groot(checkpoint(image_target_size=[64, 64], crop_fraction=1.0, modality_configs=order))
    raw = frames(policy)
    _, views, _ = seen(policy, raw, qwen, adapter_of, tapped)
    assert views.names == (WRIST, FRONT)
    torch.testing.assert_close(views.images[:, 0], raw[WRIST], atol=0.005, rtol=0)
    torch.testing.assert_close(views.images[:, 1], raw[FRONT], atol=0.005, rtol=0)
    torch.testing.assert_close(views.depth[:, 0], raw[f"{WRIST}_depth"][:, 0])


def test_fault_25_cameras_unlike_the_prompt_are_an_error(groot_base, qwen, frames, adapter_of, tapped) -> None:
    policy = tiny_groot(groot_base)
    raw = frames(policy, missing=(FRONT,))
    with pytest.raises(ViewsError, match="show 2 images, not those of the cameras"):
        seen(policy, raw, qwen, adapter_of, tapped)
    _, views, student = seen(policy, raw, qwen, adapter_of, tapped, views=(WRIST,))
    assert views.names == (WRIST,)
    assert student.values.shape[:2] == (2, 1)
    with pytest.raises(AdapterError, match=r"no camera observation\.images\.side"):
        adapter_of(policy, views=("observation.images.side",))


def test_fault_24_the_letterbox_is_masked(checkpoint, qwen, frames, adapter_of, tapped) -> None:
    base = checkpoint(image_target_size=[64, 64], letter_box_transform=True, crop_fraction=1.0)
    policy = tiny_groot(base, image_shape=(3, 32, 64))
    _, views, student = seen(policy, frames(policy), qwen, adapter_of, tapped)
    assert bool((views.images[:, :, :, :14] == 0).all())
    assert student.mask[0, 0].int().tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


def test_the_last_of_several_frames_is_aligned(checkpoint, qwen, frames, adapter_of, tapped) -> None:
    times = {"new_embodiment": {"video": {"modality_keys": ["front", "wrist"], "delta_indices": [-1, 0]}}}
    policy = tiny_groot(checkpoint(image_target_size=[64, 64], crop_fraction=1.0, modality_configs=times))
    raw = frames(policy)
    clip = {**raw, **{key: torch.stack([raw[key].flip(0), raw[key]], 1) for key in CAMERAS}}
    batch, views, student = seen(policy, clip, qwen, adapter_of, tapped)
    assert len(batch["image_grid_thw"]) == 2 * 2 * 2
    torch.testing.assert_close(views.images[:, 0], raw[FRONT], atol=0.005, rtol=0)
    changed = {**clip, FRONT: clip[FRONT].clone()}
    changed[FRONT][:, -1, :, 16:32, 48:] = 1 - changed[FRONT][:, -1, :, 16:32, 48:].round()
    after = seen(policy, changed, qwen, adapter_of, tapped)[2]
    moved = (after.values - student.values)[0].norm(dim=-1)
    assert int(moved.argmax()) == 1 * 4 + 3


def test_fault_27_a_random_crop_leaves_no_geometry(checkpoint, qwen, frames, adapter_of, tapped) -> None:
    base = checkpoint(image_target_size=[64, 64], image_crop_size=[56, 56], use_albumentations=True)
    policy = tiny_groot(base)
    raw = frames(policy)
    with pytest.raises(ViewsError, match="crops at random"):
        seen(policy, raw, qwen, adapter_of, tapped)
    adapter = adapter_of(policy)
    adapter.cameras = None
    process, _ = tiny_groot_processors(policy, qwen, STATS)
    _, views, student = tapped(adapter, process({key: raw[key] for key in raw if not key.endswith("_depth")}), 1)
    assert views.source_to_view is None
    assert bool(student.mask.all())


def test_without_a_preprocessor_it_says_so(groot_base, frames, adapter_of, wrap) -> None:
    policy = tiny_groot(groot_base)
    with pytest.raises(ViewsError, match="did not go through GR00T's preprocessor"):
        adapter_of(policy).prompt(frames(policy))


def test_fault_26_other_image_processor_values_are_an_error(groot_base, batch_of, wrap) -> None:
    policy = wrap(tiny_groot(groot_base), adapter=("groot", {"pixel_std": (1.0, 1.0, 1.0)}))
    with pytest.raises(ViewsError, match="expected \\[0, 1\\]"):
        policy.forward(batch_of(policy))
