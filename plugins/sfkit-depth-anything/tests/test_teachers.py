"""The teachers as sfkit uses them: through the registry, the host and a training step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_backbones.blocks import cast_products
from sfkit_depth_anything.config import TINY as TINY_CONFIG
from sfkit_depth_anything.config import TINY_GATED
from sfkit_depth_anything.teachers import DA3Base, DA3Giant, DA3Large, DA3Small
from torch.profiler import ProfilerActivity, profile

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, ShapeError
from sfkit.factory.components import build_teacher
from sfkit.registry.registry import default_registry
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views

TEACHERS = (DA3Small, DA3Base, DA3Large, DA3Giant)
TINY = {"config": "tiny", "size": 56}


@pytest.mark.parametrize("kind", TEACHERS, ids=lambda kind: kind.name)
def test_the_registry_entry_matches_the_class(kind: type[DA3Base]) -> None:
    entry = default_registry().get("teacher", kind.name)
    assert entry.load() is kind
    assert entry.license == kind.license
    assert kind.source.repo.rpartition("/")[2].removesuffix("-1.1").lower() == kind.name
    assert kind().noncommercial == (kind.name in {"da3-large", "da3-giant"})


@pytest.mark.parametrize("kind", TEACHERS, ids=lambda kind: kind.name)
def test_a_policy_trains_with_it(kind: type[DA3Base]) -> None:
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, (kind.name, TINY), adapter=TinyAdapter(policy), student_layer=2)
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss, logs = policy(tiny_batch(2, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(logs["sf_loss"])
    assert losses[-1] < losses[0]
    assert not any("teacher" in name or "camera_token" in name for name in policy.state_dict())


def test_the_license_is_said_once_at_wrap_time(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    for name, said in (("da3-giant", 1), ("da3-base", 0)):
        policy = TinyPolicy()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sfkit"):
            # Nothing is loaded yet: the note comes before a byte is fetched.
            SpatialForcing.wrap(
                policy, (name, {"weights": str(tmp_path)}), adapter=TinyAdapter(policy), student_layer=2
            )
        notes = [record.getMessage() for record in caplog.records if "non-commercial" in record.getMessage()]
        assert len(notes) == said
        assert all("CC-BY-NC-4.0" in note and name in note for note in notes)


def test_what_is_recorded_of_the_weights() -> None:
    assert DA3Large().identity["weights"] == "depth-anything/DA3-LARGE-1.1"
    assert DA3Base().identity["license"] == "Apache-2.0"
    assert DA3Giant(TINY).identity["weights"] == "random"


def test_options_have_descriptions_and_defaults() -> None:
    fields = DA3Base.Options.model_fields
    assert {"half", "reference", "size", "view_order", "residual", "micro_batch"} <= set(fields)
    assert all(field.description for field in fields.values())
    made = DA3Base()
    assert (made.side, made.options.half, made.options.reference) == (504, "both", "auto")
    assert made.placement((480, 640)).canvas == (378, 504)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 500}, "Set size=504"),
        ({"half": "frame"}, "half.*'both', 'local' or 'global'"),
        ({"reference": "middle"}, "reference.*'auto' or 'first'"),
        ({"refrence": "first"}, "Did you mean 'reference'"),
        ({"config": "tny"}, "Did you mean 'tiny'"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_teacher(("da3-base", options))


@pytest.mark.parametrize("layer", [0, 7, -1])
def test_unknown_layers(views_of: Callable[..., Views], layer: int) -> None:
    with pytest.raises(ConfigError, match="Layers are 1 to 6"):
        TeacherRunner(DA3Base(TINY)).features(views_of([[True]]), [layer], (4, 4))


def test_no_views_at_all(views_of: Callable[..., Views]) -> None:
    with pytest.raises(ShapeError, match="no side of 0"):
        Views(torch.zeros(1, 0, 3, 8, 8), torch.zeros(1, 0, 8, 8, dtype=torch.bool), ())


@settings(max_examples=12)
@given(st.integers(20, 80), st.integers(20, 80), st.sampled_from(["keep", "pad", "crop", "stretch"]))
def test_any_view_gets_a_map_over_itself(views_of: Callable[..., Views], h: int, w: int, fit: str) -> None:
    (found,) = TeacherRunner(DA3Base({**TINY, "fit": fit})).features(views_of([[True, True]], (h, w)), [6], (4, 4))
    rows, columns = found.grid
    assert abs(rows / columns - h / w) <= 0.5 * h / w + 0.5 or fit == "stretch"
    assert found.values.isfinite().all()
    assert found.mask.any()


@pytest.mark.parametrize("options", [{"micro_batch": 1}, {"micro_batch": 2}])
def test_micro_batches_change_nothing(views_of: Callable[..., Views], options: dict[str, Any]) -> None:
    views = views_of([[True] * 3] * 3)
    (whole,), (parts,) = (
        TeacherRunner(DA3Base(chosen)).features(views, [6], (4, 4)) for chosen in (TINY, {**TINY, **options})
    )
    assert_rounded(whole.values, parts.values)


def test_view_order_names_the_reference_of_two(views_of: Callable[..., Views]) -> None:
    views = views_of([[True, True]])
    turned = Views(views.images.flip(1), views.valid.flip(1), views.names[::-1])
    (reordered,), (given,) = (
        TeacherRunner(DA3Base(options)).features(seen, [6], (4, 4))
        for options, seen in (({**TINY, "view_order": ("cam1",)}, views), (TINY, turned))
    )
    assert_rounded(reordered.values, given.values.flip(1))
    (plain,) = TeacherRunner(DA3Base(TINY)).features(views, [6], (4, 4))
    assert (plain.values - reordered.values).abs().max() > 0.1


def test_view_order_is_ignored_where_the_reference_is_chosen(
    views_of: Callable[..., Views], caplog: pytest.LogCaptureFixture
) -> None:
    views, order = views_of([[True] * 3]), {"view_order": ("cam2",)}
    with caplog.at_level(logging.INFO, logger="sfkit"):
        host = TeacherRunner(DA3Base({**TINY, **order}))
        (reordered,) = host.features(views, [6], (4, 4))
        host.features(views, [6], (4, 4))
    assert sum("ignores view_order" in record.getMessage() for record in caplog.records) == 1
    (plain,) = TeacherRunner(DA3Base(TINY)).features(views, [6], (4, 4))
    assert_rounded(plain.values, reordered.values)
    caplog.clear()
    first = {**TINY, "reference": "first"}
    (ordered,), (unordered,) = (
        TeacherRunner(DA3Base(chosen)).features(views, [6], (4, 4)) for chosen in ({**first, **order}, first)
    )
    assert (ordered.values - unordered.values).abs().max() > 0.1
    assert not any("view_order" in record.getMessage() for record in caplog.records)


def test_an_unknown_camera_in_view_order(views_of: Callable[..., Views]) -> None:
    with pytest.raises(ConfigError, match=r"Its views: observation\.images\.cam0"):
        TeacherRunner(DA3Base({**TINY, "view_order": ("wrist",)})).features(views_of([[True]]), [6], (4, 4))


def peak(run: Callable[[], object]) -> int:
    """Bytes on the CPU at their highest, over what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"half": "local"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "residual": "bfloat16", "half": "global"},
        {"config": "wide"},
        {"config": "gated", "half": "global"},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [[6], [1, 3, 5, 6]], ids=str)
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_memory_is_estimated_from_above_and_not_by_far(
    options: dict[str, Any], layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    if has_amx and "dtype" in options:
        pytest.skip("attention on a processor with AMX packs bfloat16 into scratch memory, by the thread")
    wide = {"dim": 256, "heads": 4}
    extra = {
        "wide": TINY_CONFIG.model_copy(update=wide),
        "gated": TINY_GATED.model_copy(update={**wide, "hidden": 680}),
    }
    monkeypatch.setattr(DA3Base, "configs", {**DA3Base.configs, **extra})
    teacher = DA3Base({"config": "tiny", "size": 224, **options})
    backbone = teacher.build().eval()
    cast_products(backbone, torch.bfloat16 if teacher.options.dtype == "bfloat16" else torch.float32)
    images = torch.rand(2, 2, 3, 224, 224)

    def run() -> object:
        with torch.inference_mode():
            return teacher.features(backbone, images, layers)

    run()
    measured = peak(run) + images.numel() * 4  # and the images as painted
    estimate = teacher.memory((2, 2, 224, 224), layers, torch.device("cpu")).working
    assert 0.95 * measured <= estimate <= 1.5 * measured


def test_the_memory_of_full_sizes() -> None:
    views, cpu = (1, 2, 504, 504), torch.device("cpu")
    small, giant = (kind().memory(views, [kind().default_layer], cpu) for kind in (DA3Small, DA3Giant))
    assert small.weights == 4 * 22_059_008
    assert giant.weights == 4 * 1_136_489_216
    half = DA3Giant({"dtype": "bfloat16"}).memory(views, [40], cpu)
    assert 0.5 < half.weights / giant.weights < 0.51
    assert half.working < giant.working
    assert "residual=bfloat16" in DA3Giant().memory_advice
