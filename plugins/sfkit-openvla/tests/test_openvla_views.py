"""The images that teachers are shown, against those that went into upstream's image processor."""

from __future__ import annotations

import json

import pytest
import torch
from prismatic_loop import normalized
from sfkit_openvla.images import to_images

from sfkit.errors import ConfigError, ShapeError, ViewsError

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
EXACT = ({"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, HALF)
#: Of the released processors: ImageNet's, rounded to bfloat16.
ROUNDED = tuple(
    {key: torch.tensor(value).bfloat16().tolist() for key, value in item.items()} | {"inplace": False} for item in EXACT
)


def by_processor(images: torch.Tensor) -> torch.Tensor:
    """``(b, v, 3, h, w)`` to ``(b, 6 v, h, w)``, as a released processor normalizes."""
    halves = [
        (images - torch.tensor(item["mean"])[:, None, None]) / torch.tensor(item["std"])[:, None, None]
        for item in ROUNDED
    ]
    return torch.cat(halves, 2).flatten(1, 2)


@pytest.mark.parametrize("source", ["given", "folder"])
def test_fault_83_the_processors_own_constants_are_undone(source, script, adapter_of, views_of, tmp_path) -> None:
    if source == "folder":
        pytest.importorskip("transformers")
    oft = script("oft-l1", images=2)
    policy, batch = oft.policy(), oft.batch()
    pixels = by_processor(batch["images"])
    options = {"normalization": ROUNDED}
    if source == "folder":
        record = {"image_processor_type": "PrismaticImageProcessor", "tvf_normalize_params": list(ROUNDED)}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
        policy.config._name_or_path, options = str(tmp_path), {}
    adapter = adapter_of(policy, teacher_images="dino", **options)
    views = views_of(adapter, {**batch, "pixel_values": pixels})
    torch.testing.assert_close(views.images, batch["images"], atol=1e-6, rtol=0)
    exact = to_images(pixels, 2, fused=True, half="dino")
    assert float((exact - batch["images"]).abs().max()) > 1e-3, "ImageNet's own are another image"


def test_fault_83_constants_that_cannot_be_read_are_refused(script, adapter_of, tmp_path) -> None:
    pytest.importorskip("transformers")
    policy = script("oft-l1").policy()
    policy.config._name_or_path = ""
    with pytest.raises(ConfigError, match="does not say where it was loaded from") as caught:
        adapter_of(policy, teacher_images="dino")
    assert '"normalization": processor.image_processor.tvf_normalize_params' in caught.value.remedy
    policy.config._name_or_path = str(tmp_path)
    with pytest.raises(ConfigError, match="could not be read"):
        adapter_of(policy, teacher_images="dino")
    for record, says in (({}, "no tvf_normalize_params"), ({"tvf_normalize_params": [{"mean": [1, 2]}]}, "mean")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=says):
            adapter_of(policy, teacher_images="dino")
    with pytest.raises(ConfigError, match="1 normalizations of images, for 2 featurizers"):
        adapter_of(policy, normalization=ROUNDED[:1])
    adapter_of(policy)  # SigLIP's half needs none


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("half", ["siglip", "dino"])
def test_fault_26_teachers_see_the_cameras_pixels(images, half, script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=images)
    batch = oft.batch()
    views = views_of(adapter_of(oft.policy(), teacher_images=half, normalization=EXACT), batch)
    torch.testing.assert_close(views.images, batch["images"], atol=1e-6, rtol=0)
    assert bool(views.valid.all())


def test_fault_26_the_bfloat16_cast_costs_a_quarter_gray_level(script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=2)
    policy, batch = oft.policy(), oft.batch()
    # All gray levels of a camera, so that the bound is that of the cast and not of the sample.
    batch["images"] = (torch.arange(batch["images"].numel()) % 256 / 255).view_as(batch["images"])
    pixels = {"pixel_values": normalized(batch["images"]).to(torch.bfloat16)}
    siglip, dino = (
        views_of(adapter_of(policy, teacher_images=h, normalization=EXACT), {**batch, **pixels}).images
        for h in ("siglip", "dino")
    )
    assert siglip.dtype == torch.float32
    assert float((siglip - batch["images"]).abs().max()) < 0.26 / 255
    assert float((dino - batch["images"]).abs().max()) < 0.46 / 255
    assert 0 <= float(dino.min()) <= float(dino.max()) <= 1


def test_a_backbone_of_siglip_alone(script, adapter_of, views_of) -> None:
    openvla = script("openvla")
    batch = openvla.batch(fused=False)
    views = views_of(adapter_of(openvla.policy(fused=False)), batch)
    torch.testing.assert_close(views.images, batch["images"])


def test_fault_25_views_come_in_the_order_of_the_channels(script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=3)
    policy, batch = oft.policy(), oft.batch()
    for view in range(3):
        batch["images"][:, view] *= (view + 1) / 4
    views = views_of(adapter_of(policy), {**batch, "pixel_values": normalized(batch["images"])})
    assert views.names == ("primary", "left_wrist", "right_wrist")
    brightness = views.images.mean((0, 2, 3, 4)).tolist()
    assert brightness == sorted(brightness)
    named = views_of(adapter_of(policy, view_names=("a", "b", "c")), batch)
    assert named.names == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"view_names lists 1 \(a\), the policy takes 3"):
        views_of(adapter_of(policy, view_names=("a",)), batch)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p: None, ViewsError, "no images: pixel_values is None"),
        (lambda p: {"dino": p}, ViewsError, "pixel_values is a dict"),
        (lambda p: p[:, :6], ShapeError, r"\(2, 6, 56, 56\), which would be 1 views; .* takes \(b, 12, h, w\)"),
        (lambda p: p.unflatten(1, (2, 6)), ShapeError, r"shape \(2, 2, 6, 56, 56\)"),
        (lambda p: p.permute(0, 2, 3, 1), ShapeError, r"\(2, 56, 56, 12\)"),
        (lambda p: (p * 0 + 7).to(torch.uint8), ViewsError, "torch.uint8"),
    ],
)
def test_unusable_pixel_values_say_what_was_found(change, error, says, script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=2)
    batch = oft.batch()
    with pytest.raises(error, match=says):
        views_of(adapter_of(oft.policy()), {**batch, "pixel_values": change(batch["pixel_values"])})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, images: p.unflatten(1, (2, 2, 3)).flip(2).flatten(1, 3),  # SigLIP's half first
        lambda p, images: p.unflatten(1, (2, 2, 3)).transpose(1, 2).flatten(1, 3),  # both halves of DINOv2 first
        lambda p, images: images.repeat_interleave(2, 1).flatten(1, 2),  # never normalized
        lambda p, images: p.unflatten(1, (2, 6)).flip(2).flatten(1, 2),  # channels backwards
    ],
    ids=["halves", "interleaved", "raw", "backwards"],
)
def test_fault_25_26_channels_of_another_order_are_an_error(wrong, script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=2)
    policy, batch = oft.policy(), oft.batch()
    batch["images"] = batch["images"] * torch.tensor([1.0, 0.7, 0.2]).view(3, 1, 1)  # no gray noise: colors matter
    pixels = wrong(normalized(batch["images"]), batch["images"])
    with pytest.raises(ViewsError, match="halves of view 0 of pixel_values do not show one image"):
        views_of(adapter_of(policy), {**batch, "pixel_values": pixels})
    adapter = adapter_of(policy, verify_images=False)
    views_of(adapter, {**batch, "pixel_values": pixels})


def test_images_are_verified_once(script, adapter_of, views_of) -> None:
    oft = script("oft-l1", images=1)
    adapter, batch = adapter_of(oft.policy()), oft.batch()
    views_of(adapter, batch)
    views_of(adapter, {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])})


def test_a_teacher_that_needs_depth_gets_a_clear_error(script, wrap) -> None:
    openvla = script("openvla")
    policy = wrap(openvla.policy(), "geometry")
    with pytest.raises(ViewsError, match=r"gets images \(pixel_values\) and no"):
        openvla.loss(policy, openvla.batch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_24_the_bars_of_a_letterbox_are_not_aligned(dtype, script, adapter_of, views_of) -> None:
    it = script("oft-l1", images=2)
    batch = it.batch(image_resize_strategy="letterbox")
    wanted = torch.ones(2, 2, 56, 56, dtype=torch.bool)
    wanted[0, :, :9] = wanted[0, :, 48:] = wanted[1, 1, :, :20] = wanted[1, 1, :, 36:] = False
    batch["images"].masked_fill_(~wanted[:, :, None], 127 / 255)
    batch["images"][0, 0, :, 20, 3:50] = 127 / 255  # gray, but no bar
    pixels = {"pixel_values": normalized(batch["images"]).to(dtype)}
    adapter = adapter_of(it.policy(image_resize_strategy="letterbox"))
    views = views_of(adapter, {**batch, **pixels})
    assert torch.equal(views.valid, wanted)
    assert views.token_mask((4, 4))[0, 0].all(1).tolist() == [False, True, True, False]
    assert bool(views_of(adapter_of(it.policy()), {**batch, **pixels}).valid.all()), "not padded by the processor"


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox"])
def test_images_of_upstreams_own_processor(strategy, checkout, script, adapter_of, views_of) -> None:
    pil = pytest.importorskip("PIL.Image")
    processing = checkout.module("prismatic.extern.hf.processing_prismatic")
    imagenet, half = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3,) * 2
    processor = processing.PrismaticImageProcessor(
        use_fused_vision_backbone=True,
        image_resize_strategy=strategy,
        input_sizes=[(3, 56, 56)] * 2,
        interpolations=["bicubic"] * 2,
        means=[imagenet[0], half[0]],
        stds=[imagenet[1], half[1]],
    )
    image = pil.new("RGB", (60, 40), (255, 0, 51))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    it = script("oft-discrete" if checkout.is_oft else "openvla")
    adapter = adapter_of(it.policy(image_resize_strategy=strategy))
    views = views_of(adapter, {**it.batch(), "pixel_values": pixels})
    assert views.images[0, 0, :, 28, 28].tolist() == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)
    rows = views.token_mask((4, 4))[0, 0].all(1).tolist()
    assert rows == ([False, True, True, False] if strategy == "letterbox" else [True] * 4)
    assert bool(views.valid[0, 0, 28].all())
