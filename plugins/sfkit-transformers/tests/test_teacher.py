"""The teacher in sfkit: options, images, precision, wrapping, saving."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sfkit_transformers.preprocessing import read_preprocessing
from sfkit_transformers.teacher import TransformersTeacher
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, ShapeError, ViewsError
from sfkit.factory.components import build_teacher
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.utils.places import digest_of
from sfkit.views.types import Views

Folders = Callable[[str], Path]
MakeViews = Callable[..., Views]


def run(teacher: TransformersTeacher, views: Views, layers: list[int]) -> list[Tensor]:
    return [found.values for found in TeacherRunner(teacher).features(views, layers, (4, 4))]


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("name", ["dinov2", "siglip", "vjepa2"])
def test_fault_26_images_are_normalized_once_as_in_the_processor(
    name: str, folders: Folders, make_views: MakeViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, folder = make_views(1, 1), folders(name)
    seen: dict[str, Tensor] = {}
    model = TransformersTeacher({"model": str(folder)})
    host = TeacherRunner(model)
    host.features(views, [1], (4, 4))
    inner: Any = host._model
    inner.model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    host.features(views, [1], (4, 4))
    as_bytes = (views.images[0, 0] * 255).round().to(torch.uint8)
    if name == "vjepa2":
        processor = transformers.AutoVideoProcessor.from_pretrained(folder, do_resize=False, do_center_crop=False)
        wanted = processor([as_bytes.expand(2, -1, -1, -1)], return_tensors="pt")["pixel_values_videos"]
        assert_rounded(seen["pixel_values_videos"], wanted)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        wanted = processor([as_bytes], return_tensors="pt")["pixel_values"]
        assert_rounded(seen["pixel_values"], wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images * 2 - 1,
        lambda images: images * 255,
        lambda images: (images - 0.45) / 0.225,
        lambda images: torch.where(images > 0.99, torch.nan, images),
    ],
    ids=["minus one to one", "bytes", "normalized", "nan"],
)
def test_fault_26_images_in_another_range_are_refused(
    wrong: Callable[[Tensor], Tensor], dinov2: Path, make_views: MakeViews
) -> None:
    views = make_views(1, 2)
    changed = Views(wrong(views.images), views.valid, views.names)
    with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
        run(TransformersTeacher({"model": str(dinov2)}), changed, [1])


@pytest.mark.parametrize(
    ("settings_", "mean", "std", "size"),
    [
        (
            {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 28, "width": 28}},
            (0.5,) * 3,
            (0.25,) * 3,
            28,
        ),
        ({"image_mean": 0.5, "image_std": 0.5, "size": {"shortest_edge": 256}}, (0.5,) * 3, (0.5,) * 3, 256),
        ({"do_normalize": False, "size": 224}, (0.0,) * 3, (1.0,) * 3, 224),
        # A processor that maps bytes to [0, 2] and takes one off.
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, (0.5,) * 3, (0.5,) * 3, None),
        (
            {
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            (0.5,) * 3,
            (0.5,) * 3,
            224,
        ),
    ],
)
def test_settings_of_image_processors(settings_: dict[str, Any], mean: Any, std: Any, size: int | None) -> None:
    found = read_preprocessing(settings_, "m", None, None)
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)
    assert found.size == size


@pytest.mark.parametrize(
    ("settings_", "given", "said"),
    [
        ({}, {}, "no preprocessor_config.json"),
        ({"do_rescale": False, "image_mean": [0] * 3, "image_std": [1] * 3}, {}, "does not scale"),
        ({"size": 224}, {}, "names no image_mean"),
        ({}, {"mean": (0.5, 0.5, 0.5)}, "only one"),
    ],
)
def test_settings_that_do_not_say_how_to_normalize(settings_: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_preprocessing(settings_, "m", given.get("mean"), given.get("std"))
    assert "mean" in caught.value.remedy + caught.value.message


def test_a_folder_without_a_processor_needs_mean_and_std(dinov2: Path, tmp_path: Path, make_views: MakeViews) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(dinov2, folder, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(ConfigError, match=r"no preprocessor_config\.json"):
        TransformersTeacher({"model": str(folder)})
    own = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    (stated,) = run(TransformersTeacher({"model": str(folder), **own}), make_views(1, 1), [2])
    (read,) = run(TransformersTeacher({"model": str(dinov2)}), make_views(1, 1), [2])
    assert_rounded(stated, read)


def test_the_size_is_that_of_the_processor_or_the_option(dinov2: Path, make_views: MakeViews) -> None:
    teacher = TransformersTeacher({"model": str(dinov2)})
    assert (teacher.side, teacher.patch) == (32, 8)
    assert run(teacher, make_views(1, 1, 64, 64), [1])[0].shape == (1, 1, 4, 4, 24)
    larger = TransformersTeacher({"model": str(dinov2), "size": 48})
    assert run(larger, make_views(1, 1, 64, 64), [1])[0].shape == (1, 1, 6, 6, 24)
    with pytest.raises(ConfigError, match="multiples of 8, not 30") as caught:
        TransformersTeacher({"model": str(dinov2), "size": 30})
    assert caught.value.remedy == "Set size=32."


@pytest.mark.parametrize("name", ["dinov2", "dinov3_convnext"])
def test_padding_is_taken_out_again_at_every_stride(name: str, folders: Folders, make_views: MakeViews) -> None:
    teacher = TransformersTeacher({"model": str(folders(name)), "size": 128, "fit": "pad"})
    maps = TeacherRunner(teacher).features(make_views(1, 1, 64, 128), [1, teacher.num_layers], (4, 4))
    for found in maps:
        rows, columns = found.grid
        assert columns == 2 * rows
        assert bool(found.mask.all())


def test_the_students_letterbox_is_painted_over(dinov2: Path, make_views: MakeViews) -> None:
    views = make_views(1, 1)
    valid = views.valid.clone()
    valid[:, :, :8] = False
    host = TeacherRunner(TransformersTeacher({"model": str(dinov2)}))
    (first,) = host.features(Views(views.images, valid, views.names), [3], (4, 4))
    other = torch.where(valid.unsqueeze(2), views.images, 0.0)
    (second,) = host.features(Views(other, valid, views.names), [3], (4, 4))
    assert torch.equal(first.values, second.values)


# ---------------------------------------------------------------------------------------------------- views and layers


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(present=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3))
def test_absent_views_change_nothing_and_are_masked(
    present: list[list[bool]], dinov2: Path, make_views: MakeViews
) -> None:
    views = make_views(len(present), 3)
    there = torch.tensor(present)
    valid = there[:, :, None, None].expand_as(views.valid)
    host = TeacherRunner(TransformersTeacher({"model": str(dinov2)}))
    (whole,) = host.features(views, [2], (4, 4))
    blank = torch.where(there[:, :, None, None, None], views.images, torch.nan)
    (part,) = host.features(Views(blank, valid, views.names), [2], (4, 4))
    assert torch.equal(part.mask.all(-1).all(-1), there)
    assert_rounded(part.values[there], whole.values[there])


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(3)), layers=st.permutations([1, 2, 3]), micro=st.sampled_from([None, 1, 2]))
def test_views_and_layers_in_any_order(
    order: list[int], layers: list[int], micro: int | None, dinov2: Path, make_views: MakeViews
) -> None:
    views = make_views(3, 3)
    plain = run(TransformersTeacher({"model": str(dinov2)}), views, [1, 2, 3])
    shuffled = Views(views.images[:, order], views.valid, views.names)
    found = run(TransformersTeacher({"model": str(dinov2), "micro_batch": micro}), shuffled, layers)
    for layer, values in zip(layers, found, strict=True):
        assert_rounded(values, plain[layer - 1][:, order])


@pytest.mark.parametrize("layers", [[0], [4], []])
def test_layers_that_do_not_exist(layers: list[int], dinov2: Path, make_views: MakeViews) -> None:
    with pytest.raises(ConfigError, match="has no layer") as caught:
        run(TransformersTeacher({"model": str(dinov2)}), make_views(1, 1), layers)
    assert caught.value.remedy == "Layers are 1 to 3."


def test_no_views() -> None:
    with pytest.raises(ShapeError, match="no side of 0"):
        Views(torch.zeros(1, 0, 3, 8, 8), torch.zeros(1, 0, 8, 8, dtype=torch.bool), ())


# ------------------------------------------------------------------------------------------------------- unknown kinds


def _unlisted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from sfkit_transformers import teacher

    monkeypatch.setattr(teacher, "FAMILIES", {k: v for k, v in teacher.FAMILIES.items() if k != name})


def test_an_unknown_model_type_states_its_prefix_tokens(
    folders: Folders, make_views: MakeViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(folders("dinov2_registers"))
    (known,) = run(TransformersTeacher({"model": folder}), make_views(1, 1), [2])
    _unlisted(monkeypatch, "dinov2_with_registers")
    with pytest.raises(ShapeError, match="gives 20 tokens for an image of 4x4 patches, that is 4 more") as caught:
        run(TransformersTeacher({"model": folder}), make_views(1, 1), [2])
    assert "prefix_tokens=4" in caught.value.remedy
    (declared,) = run(TransformersTeacher({"model": folder, "prefix_tokens": 4}), make_views(1, 1), [2])
    assert torch.equal(declared, known)


def test_an_unknown_model_type_works_if_all_tokens_are_patches(
    folders: Folders, make_views: MakeViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = run(TransformersTeacher({"model": str(folders("ijepa"))}), make_views(1, 1), [2])
    _unlisted(monkeypatch, "ijepa")
    (unknown,) = run(TransformersTeacher({"model": str(folders("ijepa"))}), make_views(1, 1), [2])
    assert torch.equal(unknown, known)


def test_a_wrong_number_of_prefix_tokens_is_an_error(dinov2: Path, make_views: MakeViews) -> None:
    with pytest.raises(ShapeError, match="1 more, where 2 were expected"):
        run(TransformersTeacher({"model": str(dinov2), "prefix_tokens": 2}), make_views(1, 1), [1])


@pytest.mark.parametrize("name", ["clip", "dinov3_convnext"])
def test_a_norm_for_every_layer_needs_a_model_that_has_one(name: str, folders: Folders) -> None:
    with pytest.raises(ConfigError, match="no norm that fits"):
        TransformersTeacher({"model": str(folders(name)), "norm": "all"})


# ------------------------------------------------------------------------------------------------ precision and memory


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "siglip2_naflex", "clip", "vjepa2", "dinov3_convnext"])
def test_bfloat16_products_stay_close_with_a_float32_stream(name: str, folders: Folders, make_views: MakeViews) -> None:
    side = 96 if name == "dinov3_convnext" else 32
    views, folder = make_views(1, 2, side, side), str(folders(name))
    exact = run(TransformersTeacher({"model": folder}), views, [2, 3])
    fast = TransformersTeacher({"model": folder, "dtype": "bfloat16"})
    for wanted, found in zip(exact, run(fast, views, [2, 3]), strict=True):
        assert found.dtype == torch.float32
        assert float(F.cosine_similarity(wanted, found, dim=-1).min()) > 0.999
        assert not torch.equal(wanted, found)
    dtypes = {
        type(m).__name__: m.weight.dtype for m in fast.load(torch.device("cpu")).modules() if hasattr(m, "weight")
    }
    assert dtypes["Linear"] == torch.bfloat16
    assert dtypes["LayerNorm"] == torch.float32


def test_compiled_blocks_give_the_same(dinov2: Path, make_views: MakeViews, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = run(TransformersTeacher({"model": str(dinov2)}), make_views(1, 1), [2])
    compiled: list[Any] = []
    real = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or real(function))
    host = TeacherRunner(TransformersTeacher({"model": str(dinov2), "compile": True}))
    for layers in ([2], [1, 2], [2]):  # what is taken out may change from call to call
        found = host.features(make_views(1, 1), layers, (4, 4))[-1]
        assert_rounded(found.values, plain)
    assert len(compiled) == 3


def test_the_memory_estimate_counts_the_weights_that_are_kept(folders: Folders) -> None:
    for name in ("dinov2", "siglip", "depth_anything", "vjepa2", "dinov3_convnext"):
        teacher = TransformersTeacher({"model": str(folders(name))})
        estimate = teacher.memory((2, 2, 32, 32), [3], torch.device("cpu"))
        loaded = teacher.load(torch.device("cpu"))
        tensors = [*loaded.parameters(), *loaded.buffers()]
        assert estimate.weights == sum(tensor.numel() * tensor.element_size() for tensor in tensors), name
        assert estimate.working > 0
        more = teacher.memory((4, 2, 32, 32), [3], torch.device("cpu"))
        assert more.working == 2 * estimate.working
    assert "residual" not in teacher.memory_advice


# --------------------------------------------------------------------------------------------------- names and wrapping


def test_the_name_has_the_model_behind_a_colon(dinov2: Path) -> None:
    teacher = build_teacher(f"hf:{dinov2}")
    assert isinstance(teacher, TransformersTeacher)
    assert teacher.name == f"hf:{dinov2}"
    assert (teacher.num_layers, teacher.default_layer, teacher.dim(1)) == (3, 3, 24)
    with pytest.raises(ConfigError, match="form hf:<repo or folder>"):
        build_teacher("hf")


def test_the_spec_rebuilds_the_same_teacher(dinov2: Path) -> None:
    teacher = build_teacher((f"hf:{dinov2}", {"size": 48, "norm": "none"}))
    assert teacher.spec.name == f"hf:{dinov2}"
    assert teacher.changed_options == {"size": 48, "norm": "none"}
    assert teacher.spec.options == teacher.options.model_dump(mode="json", exclude={"model"})
    again = build_teacher(json.loads(teacher.spec.model_dump_json()))
    assert again.options == teacher.options
    assert build_teacher(("hf", {"model": str(dinov2), "size": 48, "norm": "none"})).spec == teacher.spec
    assert pickle.loads(pickle.dumps(teacher)).spec == teacher.spec


def test_wrapping_training_saving_and_resuming(folders: Folders, tmp_path: Path) -> None:
    policy = TinyPolicy()
    first, second = f"hf:{folders('dinov2')}", f"hf:{folders('siglip')}"
    pairs = [(1, first, 2), (2, (first, {}), 3), (2, second, 3)]
    policy = SpatialForcing.wrap(policy, pairs=pairs, adapter=TinyAdapter(policy))
    handle = policy.spatial_forcing
    assert len(handle.runners) == 2, "one teacher for both of its pairs"
    optimizer = torch.optim.AdamW(policy.parameters())
    policy.train()
    for _ in range(3):
        loss, logs = policy(tiny_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert logs["sf_loss"] > 0
    assert not [key for key in policy.state_dict() if "encoder" in key]
    handle.save(tmp_path)
    plain = TinyPolicy()
    digests = [f"hf:sha256:{digest_of(str(folders(name)))}" for name in ("dinov2", "siglip")]
    models = [{"model": str(folders(name))} for name in ("dinov2", "siglip")]
    given = dict(zip(digests, models, strict=True))
    plain = SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain), options=given)
    assert plain.spatial_forcing.config == handle.config
    assert plain.spatial_forcing.config.pairs[0].teacher.name == first


def test_a_license_that_forbids_commercial_use_is_said_at_wrap(
    dinov2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "nc"
    shutil.copytree(dinov2, folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    policy = TinyPolicy()
    with caplog.at_level("INFO", logger="sfkit"):
        SpatialForcing.wrap(policy, f"hf:{folder}", adapter=TinyAdapter(policy))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert f"'hf:{folder}'" in said[0]
    assert "CC-BY-NC-4.0" in said[0]


def test_importing_the_plugin_is_light() -> None:
    code = "import sys, sfkit_transformers; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1200)


def test_the_teacher_leaves_global_random_numbers_alone(dinov2: Path, make_views: MakeViews) -> None:
    host = TeacherRunner(TransformersTeacher({"model": str(dinov2)}))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    host.features(make_views(1, 1), [3], (4, 4))
    assert torch.equal(torch.get_rng_state(), before)
