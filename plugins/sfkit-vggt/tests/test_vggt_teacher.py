"""The teachers: what they are, their options, and their features over the student's views."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.teacher import Vggt, VggtCommercial, VggtOptions
from torch import nn

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, TeacherMemoryError
from sfkit.factory.components import build_teacher
from sfkit.registry.registry import default_registry
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import FeatureMap, Views

CPU = torch.device("cpu")
FEW = settings(max_examples=10)


def features(views: Views, layers: tuple[int, ...] = (4,), **options: Any) -> list[FeatureMap]:
    return TeacherRunner(Vggt({"config": "tiny", **options})).features(views, layers, (4, 4))


# ---------------------------------------------------------------------------------------------------- what they are


def test_both_are_registered() -> None:
    assert isinstance(build_teacher("vggt"), Vggt)
    assert isinstance(build_teacher("vggt-commercial"), VggtCommercial)
    for name, teacher in (("vggt", Vggt), ("vggt-commercial", VggtCommercial)):
        entry = default_registry().get("teacher", name)
        assert (entry.name, entry.license) == (teacher.name, teacher.license)


def test_the_entry_point_imports_no_torch() -> None:
    code = "import sys, sfkit_vggt; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_official_weights_are_pinned() -> None:
    teacher = Vggt()
    assert teacher.identity["weights"] == "facebook/VGGT-1B@860abec7937da0a4c03c41d3c269c366e82abdf9"
    assert teacher.source.sha256["model.pt"].startswith("d15bf50a")
    assert VggtCommercial().source.repo == "facebook/VGGT-1B-Commercial"
    assert VggtCommercial().source.gate


def test_sizes_are_those_of_vggt_1b() -> None:
    teacher = Vggt()
    assert (teacher.num_layers, teacher.default_layer, teacher.side, teacher.fill) == (24, 24, 518, 1.0)
    assert teacher.dim(24) == teacher.dim(1) == 2048
    assert Vggt({"half": "frame"}).dim(5) == 1024
    assert Vggt({"tokens": "camera"}).dim(5) == 2048
    assert Vggt({"tokens": "register", "half": "global"}).dim(5) == 4096


def test_licenses_are_said_at_wrap_time(
    tiny_policy: Callable[..., nn.Module], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(teacher: Any) -> list[str]:
        caplog.clear()
        tiny_policy(teacher)
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    (note,) = warned("vggt")
    assert "CC-BY-NC-4.0" in note
    assert "non-commercial use only" in note
    assert len(warned(("vggt", {"config": "tiny", "weights": str(weights)}))) == 1
    assert not warned(("vggt", {"config": "tiny"}))  # random weights are nobody's
    assert not warned("vggt-commercial")


def test_options_are_these() -> None:
    own = set(VggtOptions.model_fields)
    assert {"half", "tokens", "round_rope_angles"} <= own
    assert {"weights", "revision", "sha256", "config", "size", "fit", "view_order", "dtype", "residual"} <= own
    assert {"compile", "micro_batch", "antialias", "fill", "keep_letterbox"} <= own


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 225}, r"multiples of 14, not 225[\s\S]*size=224"),
        ({"config": "tyni"}, "Did you mean 'tiny'"),
        ({"half": "frames"}, "half"),
        ({"tokens": "all"}, "tokens"),
        ({"round_rope_angle": True}, "Did you mean 'round_rope_angles'"),
    ],
)
def test_bad_options_say_what_is_right(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Vggt(options)


# ------------------------------------------------------------------------------------------------------------- features


@given(
    b=st.integers(1, 2), v=st.integers(1, 3), rows=st.integers(2, 8), columns=st.integers(2, 8),
    half=st.sampled_from(["both", "frame", "global"]), tokens=st.sampled_from(["patch", "camera", "register"]),
    dtype=st.sampled_from(["float32", "bfloat16"]), residual=st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip
@settings(max_examples=20)
def test_maps_have_the_promised_form(
    make_views: Callable[..., Views], b: int, v: int, rows: int, columns: int, half: str, tokens: str,
    dtype: str, residual: str,
) -> None:  # fmt: skip
    views = make_views([[True] * v] * b, (rows * 8, columns * 8))
    options = {"config": "tiny", "half": half, "tokens": tokens, "dtype": dtype, "residual": residual}
    teacher = Vggt(options)
    for layer, found in zip((3, 1), TeacherRunner(teacher).features(views, (3, 1), (rows, columns)), strict=True):
        canvas = teacher.placement(views.size).canvas
        grid = (canvas[0] // 14, canvas[1] // 14) if tokens == "patch" else (1, 1)
        assert found.values.shape == (b, v, *grid, teacher.dim(layer))
        assert found.values.dtype == (torch.bfloat16 if residual == "bfloat16" else torch.float32)
        assert found.values.isfinite().all()
        assert found.mask.all()


@pytest.mark.parametrize("tokens", ["camera", "register"])
def test_single_tokens_are_those_of_the_backbone(
    make_views: Callable[..., Views], backbone: Aggregator, tokens: str
) -> None:
    views = make_views([[True, True]])
    (found,) = features(views, tokens=tokens)
    (whole,) = backbone(views.images, [4])
    wanted = whole[:, :, :1] if tokens == "camera" else whole[:, :, 1:5]
    assert_rounded(found.values[:, :, 0, 0], wanted.flatten(2))


@pytest.mark.parametrize(("fit", "grid"), [("keep", (3, 4)), ("pad", (3, 4)), ("crop", (3, 4)), ("stretch", (4, 4))])
def test_views_that_are_not_square_keep_their_own_grid(
    make_views: Callable[..., Views], fit: str, grid: tuple[int, int]
) -> None:
    (found,) = features(make_views([[True]], (42, 56)), fit=fit)
    assert found.grid == grid
    for tokens in ("camera", "register"):
        (single,) = features(make_views([[True]], (42, 56)), fit=fit, tokens=tokens)
        assert (single.values == single.values[:, :, :1, :1]).all()


def test_a_size_of_its_own_changes_the_grid_and_nothing_else(make_views: Callable[..., Views]) -> None:
    views = make_views([[True]])
    (small,), (large,) = features(views, size=28), features(views, size=112)
    assert (small.grid, large.grid) == ((2, 2), (8, 8))
    assert Vggt({"size": 224}).placement((256, 256)).canvas == (224, 224)


def test_the_order_of_views_is_an_option(make_views: Callable[..., Views]) -> None:
    views = make_views([[True, True, True]])
    (plain,) = features(views)
    (turned,) = features(views, view_order=("cam2",))
    assert not torch.allclose(plain.values, turned.values, atol=0.1)
    moved = replace(views, images=views.images[:, [2, 0, 1]], names=("cam2", "cam0", "cam1"))
    (wanted,) = features(moved)
    assert_rounded(turned.values, wanted.values[:, [1, 2, 0]])


@given(
    present=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4), seed=st.integers(0, 9)
)
@FEW
def test_masked_views_change_nothing_whatever_is_in_them(
    make_views: Callable[..., Views], present: list[list[bool]], seed: int
) -> None:
    views = make_views(present, seed=seed)
    other = views.images.where(views.valid.unsqueeze(2), torch.nan)
    host = TeacherRunner(Vggt({"config": "tiny"}))
    (found,), (again,) = (host.features(seen, (4,), (4, 4)) for seen in (views, replace(views, images=other)))
    mask = torch.tensor(present)
    assert torch.equal(found.mask, mask[:, :, None, None].expand(found.mask.shape))
    assert torch.equal(found.values[mask], again.values[mask])


def test_letterbox_is_shown_as_white(make_views: Callable[..., Views]) -> None:
    views = make_views([[True]])
    boxed = views.valid.clone()
    boxed[..., :14, :] = False
    (found,) = features(replace(views, valid=boxed))
    (wanted,) = features(replace(views, images=views.images.where(boxed.unsqueeze(2), 1.0)))
    assert torch.equal(found.values, wanted.values)


def test_micro_batches_change_nothing(make_views: Callable[..., Views]) -> None:
    views = make_views([[True, True]] * 3)
    (whole,), (parts,) = features(views), features(views, micro_batch=1)
    assert_rounded(whole.values, parts.values)


@pytest.mark.parametrize("layers", [(0,), (5,), (1, -1), ()])
def test_a_layer_that_is_not_there_is_an_error(make_views: Callable[..., Views], layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="Layers are 1 to 4"):
        features(make_views([[True]]), layers)


# --------------------------------------------------------------------------------------------------------------- memory


def test_the_estimate_follows_the_options() -> None:
    def working(**options: Any) -> int:
        return Vggt(options).memory((2, 2, 256, 256), [24], CPU).working

    plain = working()
    # Held features alone: samples, views, patches, channels, bytes.
    assert 2 * 2 * 1369 * 2048 * 4 < plain < 2**30
    assert working(size=224) < plain / 4
    assert working(micro_batch=1) == pytest.approx(plain / 2, rel=0.01)
    assert working(dtype="bfloat16") < plain
    assert working(residual="bfloat16") < plain
    assert working(half="frame") < plain
    assert working(tokens="camera") < plain
    assert Vggt().memory((2, 2, 256, 256), [4, 11, 17, 24], CPU).working > plain


def test_weights_are_counted_in_their_own_dtypes() -> None:
    whole = Vggt().memory((1, 1, 224, 224), [24], CPU).weights
    half = Vggt({"dtype": "bfloat16"}).memory((1, 1, 224, 224), [24], CPU).weights
    assert whole == 4 * 909_112_320
    assert 0.5 < half / whole < 0.51


def test_running_out_says_what_helps(make_views: Callable[..., Views], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Aggregator, "forward", full)
    with pytest.raises(TeacherMemoryError, match=r"size=28 \(now 56\)"):
        features(make_views([[True]]))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("tokens", ["patch", "camera", "register"])
def test_a_policy_trains_with_it(tiny_policy: Callable[..., nn.Module], tokens: str) -> None:
    policy = tiny_policy(("vggt", {"config": "tiny", "tokens": tokens}))
    policy.train()
    batch = {**tiny_batch(), "present": torch.tensor([[True, True], [True, False]])}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss, logs = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(logs["sf_loss"])
    assert losses[-1] < losses[0] - 0.05
    handle = SpatialForcing.of(policy)
    assert handle is not None
    assert handle.status().reaches_policy


def test_several_layers_come_from_one_run(tiny_policy: Callable[..., nn.Module]) -> None:
    teacher = ("vggt", {"config": "tiny"})
    policy = tiny_policy(None, pairs=[(1, teacher, 2), (2, teacher, 4)])
    policy.train()
    policy(tiny_batch())
    handle = SpatialForcing.of(policy)
    assert handle is not None
    assert handle.status().teacher_runs == 1
