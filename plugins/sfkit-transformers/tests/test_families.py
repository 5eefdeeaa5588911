"""Each family's features are transformers' own: layers, norms, grids, and which patch is which."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sfkit_transformers.backbone import Backbone
from sfkit_transformers.teacher import TransformersTeacher
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.testing.checks import assert_rounded
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views

Folders = Callable[[str], Path]
MakeViews = Callable[..., Views]

#: Family to the number of tokens before its patches.
PREFIX = {
    "dinov2": 1,
    "dinov2_registers": 4,
    "dinov3": 3,
    "siglip": 0,
    "siglip2_naflex": 0,
    "clip": 1,
    "depth_anything": 1,
    "vjepa2": 0,
    "ijepa": 0,
    "vit": 1,
    "vit_msn": 1,
    "deit": 2,
}
ALL = [*PREFIX, "dinov3_convnext"]
#: A convolutional model's grid is coarse: its images are larger.
SIDE = {"dinov3_convnext": 96}
#: Families whose own forward normalizes the patch tokens at the end.
NORMED = [name for name in PREFIX if name != "clip"]


def run(teacher: TransformersTeacher, views: Views, layers: list[int]) -> list[Tensor]:
    return [found.values for found in TeacherRunner(teacher).features(views, layers, (4, 4))]


def vision_model(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", config)
    return transformers.AutoModel.from_pretrained(folder, config=config).eval()


def upstream(folder: Path, name: str, views: Views) -> tuple[list[Tensor], Tensor]:
    """Hidden states and last hidden state of the real classes, through the real processor, by transformers' own way."""
    images = (views.images.flatten(0, 1) * 255).round().to(torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if name == "vjepa2":
            processor = transformers.AutoVideoProcessor.from_pretrained(folder, do_resize=False, do_center_crop=False)
            clips = [image.expand(2, -1, -1, -1) for image in images]
            inputs = dict(processor(clips, return_tensors="pt"), skip_predictor=True)
        else:
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            plain = {"do_resize": False, "do_center_crop": False} if name != "siglip2_naflex" else {}
            inputs = dict(processor(list(images), return_tensors="pt", **plain))
        inputs["output_hidden_states"] = True
        if name == "depth_anything":
            whole = transformers.AutoModelForDepthEstimation.from_pretrained(folder).eval()
            hidden = whole.backbone(**inputs).hidden_states
            return list(hidden[1:]), whole.backbone.layernorm(hidden[-1])
        output = vision_model(folder)(**inputs)
    return list(output.hidden_states[1:]), output.last_hidden_state


def as_grid(tokens: Tensor, prefix: int, views: Views) -> Tensor:
    b, v, _, h, w = views.images.shape
    return tokens[:, prefix:].reshape(b, v, h // 8, w // 8, -1)


@pytest.mark.parametrize("name", PREFIX)
def test_layers_are_hidden_states_and_the_last_hidden_state(name: str, folders: Folders, make_views: MakeViews) -> None:
    views = make_views(2, 2)
    hidden, last = upstream(folders(name), name, views)
    first, second, third = run(TransformersTeacher({"model": str(folders(name))}), views, [1, 2, 3])
    assert_rounded(first, as_grid(hidden[0], PREFIX[name], views))
    assert_rounded(second, as_grid(hidden[1], PREFIX[name], views))
    assert_rounded(third, as_grid(last, PREFIX[name], views))
    if not torch.equal(hidden[2], last):  # some releases give the last hidden state for both
        assert (float((third - as_grid(hidden[2], PREFIX[name], views)).abs().max()) > 0.01) == (name in NORMED)


def test_a_convolutional_models_layers_are_its_stages(folders: Folders, make_views: MakeViews) -> None:
    views = make_views(2, 1, 96, 96)
    folder = folders("dinov3_convnext")
    hidden, last = upstream(folder, "dinov3_convnext", views)
    teacher = TransformersTeacher({"model": str(folder)})
    found = run(teacher, views, [1, 2, 3, 4])
    assert [tuple(f.shape[2:]) for f in found] == [(24, 24, 8), (12, 12, 12), (6, 6, 16), (3, 3, 24)]
    assert [teacher.dim(layer) for layer in (1, 2, 3, 4)] == [8, 12, 16, 24]
    for stage, values in zip(hidden[:3], found[:3], strict=True):
        assert_rounded(values[:, 0], stage.permute(0, 2, 3, 1))
    assert_rounded(found[3].flatten(1, 3), last[:, 1:])


@pytest.mark.parametrize("norm", ["all", "none"])
def test_the_final_norm_is_applied_where_the_option_says(norm: str, folders: Folders, make_views: MakeViews) -> None:
    views, folder = make_views(1, 1), folders("dinov2")
    hidden, last = upstream(folder, "dinov2", views)
    first, third = run(TransformersTeacher({"model": str(folder), "norm": norm}), views, [1, 3])
    own = transformers.AutoModel.from_pretrained(folder).layernorm
    with torch.no_grad():
        wanted = (own(hidden[0]), last) if norm == "all" else (hidden[0], hidden[2])
    assert_rounded(first, as_grid(wanted[0], 1, views))
    assert_rounded(third, as_grid(wanted[1], 1, views))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wide", [False, True], ids=["square", "wide"])
def test_fault_20_a_changed_patch_moves_its_own_feature_most(
    name: str, wide: bool, folders: Folders, make_views: MakeViews
) -> None:
    side = SIDE.get(name, 32)
    views = make_views(1, 2, side, side * (2 if wide else 1))
    teacher = TransformersTeacher({"model": str(folders(name)), "size": views.size[1]})
    host = TeacherRunner(teacher)
    (before,) = host.features(views, [1], (4, 4))
    rows, columns = before.grid
    step = side // rows
    assert columns == views.size[1] // step
    for row, column in ((0, columns - 1), (rows - 1, 0), (1, 2)):
        images = views.images.clone()
        box = images[:, 1, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
        box.copy_(1 - box)
        (after,) = host.features(Views(images, views.valid, views.names), [1], (4, 4))
        moved = (after.values - before.values).norm(dim=-1)[0]
        assert int(moved[0].count_nonzero()) == 0, "the other view moved"
        assert divmod(int(moved[1].argmax()), columns) == (row, column)


@pytest.mark.parametrize("name", ALL)
def test_fault_19_oblong_images_give_oblong_grids(name: str, folders: Folders, make_views: MakeViews) -> None:
    side = SIDE.get(name, 32)
    teacher = TransformersTeacher({"model": str(folders(name)), "size": 2 * side})
    (found,) = TeacherRunner(teacher).features(make_views(2, 1, side, 2 * side), [teacher.num_layers], (4, 4))
    assert found.grid == (side // teacher.patch, 2 * side // teacher.patch)
    assert bool(found.mask.all())


@pytest.mark.parametrize("name", ALL)
def test_a_layer_is_the_same_alone_and_nothing_behind_it_runs(
    name: str, folders: Folders, make_views: MakeViews
) -> None:
    side = SIDE.get(name, 32)
    views, teacher = make_views(1, 1, side, side), TransformersTeacher({"model": str(folders(name))})
    model = teacher.load(torch.device("cpu"))
    assert isinstance(model, Backbone)
    ran: list[int] = []
    for number, block in enumerate(model.blocks, 1):
        block.register_forward_pre_hook(lambda block, inputs, number=number: ran.append(number))
    both = model(views.images.flatten(0, 1), [3, 2])
    assert ran == [1, 2, 3]
    ran.clear()
    (alone,) = model(views.images.flatten(0, 1), [2])
    assert ran == [1, 2]
    assert torch.equal(alone, both[1])
    assert model._found == {}


# Those left out have a test of their own, take their size from the input, or are DINOv2.
@pytest.mark.parametrize("name", sorted(PREFIX.keys() - {"siglip2_naflex", "vjepa2", "depth_anything"}))
def test_images_of_another_size_get_the_features_of_transformers(
    name: str, folders: Folders, make_views: MakeViews
) -> None:
    views, folder = make_views(1, 1, 48, 80), folders(name)
    (found,) = run(TransformersTeacher({"model": str(folder), "size": 80}), views, [1])
    model = vision_model(folder)
    teacher = TransformersTeacher({"model": str(folder)})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher._preprocessing.mean, teacher._preprocessing.std))
    flexible = {} if name.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        output = model((views.images[:, 0] - mean) / std, output_hidden_states=True, **flexible)
    assert_rounded(found, as_grid(output.hidden_states[1], PREFIX[name], views))


def test_v_jepa_2_sees_other_sizes_as_a_model_made_for_them_does(
    folders: Folders, make_views: MakeViews, tmp_path: Path
) -> None:
    """By itself it would take a patch for that of another row: its positions are those of the configured size."""
    views, folder = make_views(1, 1, 64, 64), folders("vjepa2")
    (found,) = run(TransformersTeacher({"model": str(folder), "size": 64}), views, [3])
    model = transformers.AutoModel.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.crop_size = 64
    larger = transformers.AutoModel.from_config(config)
    larger.load_state_dict(model.state_dict())
    larger.save_pretrained(tmp_path)
    transformers.AutoVideoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    _, last = upstream(tmp_path, "vjepa2", views)
    assert_rounded(found, as_grid(last, 0, views))
    _, wrong = upstream(folder, "vjepa2", views)
    assert float((found - as_grid(wrong, 0, views)).abs().max()) > 0.01


def test_v_jepa_2_refuses_images_that_are_higher_than_wide(folders: Folders, make_views: MakeViews) -> None:
    folder = str(folders("vjepa2"))
    with pytest.raises(ShapeError, match="4x2 patches"):
        run(TransformersTeacher({"model": folder}), make_views(1, 1, 64, 32), [1])
    assert run(TransformersTeacher({"model": folder, "fit": "pad"}), make_views(1, 1, 64, 32), [1])


def test_a_model_that_takes_its_own_size_alone_says_so(folders: Folders, make_views: MakeViews) -> None:
    teacher = TransformersTeacher({"model": str(folders("vit"))})
    model: Any = teacher.load(torch.device("cpu"))
    model._flexible = False  # as in a release whose forward has no interpolate_pos_encoding
    assert model(make_views(1, 1).images.flatten(0, 1), [1])
    with pytest.raises(ShapeError, match=r"no images of \(32, 64\) pixels") as caught:
        model(make_views(1, 1, 32, 64).images.flatten(0, 1), [1])
    assert "size=32 and fit=pad or fit=stretch" in caught.value.remedy


def test_the_predictor_and_heads_are_not_kept(folders: Folders) -> None:
    for name, gone in (("vjepa2", "predictor"), ("siglip", "head"), ("vit", "pooler"), ("depth_anything", "neck")):
        model = TransformersTeacher({"model": str(folders(name))}).load(torch.device("cpu"))
        assert not [key for key, _ in model.named_parameters() if f".{gone}." in key]
