"""The teachers ``dust3r`` and ``mast3r`` behind the core's interfaces."""

from __future__ import annotations

import logging
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, ShapeError
from sfkit.factory.components import build_teacher
from sfkit.registry.registry import default_registry
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import Views

CPU = torch.device("cpu")


def tiny(name: str = "dust3r", **options: Any) -> Any:
    return build_teacher((name, {"config": "tiny", "size": 32, **options}))


def views_of(b: int, v: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Views:
    images = torch.rand(b, v, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Views(images, torch.ones(b, v, *size, dtype=torch.bool), tuple(f"cam{i}" for i in range(v)))


# -------------------------------------------------------------------------------------------------------------- plugin


def test_the_plugin_is_import_light() -> None:
    code = "import sys, sfkit_dust3r; sys.exit(any(name in sys.modules for name in ('torch', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["dust3r", "mast3r"])
def test_registered_with_its_license(name: str) -> None:
    entry = default_registry().get("teacher", name)
    assert (entry.distribution, entry.license) == ("sfkit-dust3r", "CC-BY-NC-SA-4.0")
    assert entry.load().license == entry.license
    assert entry.load().name == name
    assert "config" in entry.load().Options.model_fields


# -------------------------------------------------------------------------------------------------- layers and targets


@pytest.mark.parametrize(
    ("target", "layers", "dims"), [("encoder", 24, {1024}), ("decoder", 12, {768}), ("both", 12, {1792})]
)
@pytest.mark.parametrize("name", ["dust3r", "mast3r"])
def test_layers_and_widths_of_the_released_models(name: str, target: str, layers: int, dims: set[int]) -> None:
    teacher: Any = build_teacher((name, {"target": target}))
    assert teacher.num_layers == teacher.default_layer == layers
    assert {teacher.dim(layer) for layer in range(1, layers + 1)} == dims


@given(
    target=st.sampled_from(["encoder", "decoder", "both"]),
    b=st.integers(1, 2),
    v=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    micro=st.sampled_from([None, 1]),
)
@settings(max_examples=10)
def test_shapes_and_widths_are_as_promised(target: str, b: int, v: int, grid: tuple[int, int], micro: Any) -> None:
    teacher = tiny(target=target, size=16 * max(grid), micro_batch=micro)
    layers = list(range(1, teacher.num_layers + 1))
    maps = TeacherRunner(teacher).features(views_of(b, v, (8 * grid[0], 8 * grid[1])), layers, (2, 2))
    for layer, found in zip(layers, maps, strict=True):
        assert found.values.shape == (b, v, *grid, teacher.dim(layer))
        assert found.values.dtype == torch.float32
        assert found.mask.all()


@pytest.mark.parametrize(("target", "layer"), [("encoder", 3), ("decoder", 4), ("both", 0)])
def test_an_unknown_layer_is_refused(target: str, layer: int) -> None:
    teacher = tiny(target=target)
    with pytest.raises(ConfigError, match=f"no layer {layer}(.|\n)*Layers are 1 to {teacher.num_layers}"):
        TeacherRunner(teacher).features(views_of(1, 1), [layer], (2, 2))


@pytest.mark.parametrize(
    "options", [{"size": 100}, {"target": "head"}, {"decoders": "three"}, {"image_geometry": "square"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny(**options)


def test_no_view_is_an_error() -> None:
    with pytest.raises(ShapeError, match="no side of 0"):
        tiny().encode(torch.nn.Identity(), views_of(1, 0), [1], (2, 2))


# ----------------------------------------------------------------------------------------------- which views, and order


def test_the_reference_view_is_chosen_by_name() -> None:
    views = views_of(2, 3)
    chosen = tiny(view_order=("cam2",))
    (found,) = TeacherRunner(chosen).features(views, [3], (2, 2))
    turned = replace(views, images=views.images[:, [2, 0, 1]], names=("cam2", "cam0", "cam1"))
    (wanted,) = TeacherRunner(tiny()).features(turned, [3], (2, 2))
    assert_rounded(found.values[:, [2, 0, 1]], wanted.values)
    (other,) = TeacherRunner(tiny()).features(views, [3], (2, 2))
    assert (other.values - found.values).abs().max() > 0.1


def test_the_encoder_knows_no_order() -> None:
    views = views_of(1, 3)
    plain, chosen = (
        TeacherRunner(tiny(target="encoder", view_order=order)).features(views, [2], (2, 2))[0]
        for order in ((), ("cam2",))
    )
    assert_rounded(plain.values, chosen.values)


@given(absent=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=5), seed=st.integers(0, 9))
@settings(max_examples=8)
def test_absent_views_change_nothing_in_the_real_ones(absent: list[tuple[int, int]], seed: int) -> None:
    views = views_of(3, 3)
    for sample, view in absent:
        views.valid[sample, view] = False
    noise = torch.rand(views.images.shape, generator=torch.Generator().manual_seed(seed))
    other = replace(views, images=torch.where(views.valid.unsqueeze(2), views.images, noise))
    host = TeacherRunner(tiny())
    (found,), (again,) = (host.features(given, [3], (2, 2)) for given in (views, other))
    there = views.present[:, :, None, None].expand(found.mask.shape)
    assert torch.equal(found.mask, there)
    assert torch.equal(found.values[there], again.values[there])
    for sample in range(3):
        columns = views.present[sample].nonzero().flatten().tolist()
        if columns:
            alone = views.select(torch.tensor([sample]), columns)
            (wanted,) = host.features(alone, [3], (2, 2))
            assert_rounded(found.values[sample, columns], wanted.values[0])


def test_masked_pixels_change_nothing() -> None:
    views = views_of(1, 2)
    views.valid[:, :, :, :8] = False
    other = replace(views, images=torch.where(views.valid.unsqueeze(2), views.images, 0.9))
    host = TeacherRunner(tiny())
    (found,), (again,) = (host.features(given, [3], (2, 2)) for given in (views, other))
    assert torch.equal(found.values, again.values)


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("target", ["encoder", "decoder", "both"])
def test_bfloat16_is_near(target: str) -> None:
    exact, rounded = (
        TeacherRunner(tiny(target=target, size=64, **options)).features(views_of(2, 2), [1, 2], (2, 2))
        for options in ({}, {"dtype": "bfloat16", "residual": "bfloat16"})
    )
    for a, b in zip(exact, rounded, strict=True):
        assert torch.nn.functional.cosine_similarity(a.values, b.values.float(), -1).min() > 0.99


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return result


@pytest.mark.parametrize("widths", [(64, 48), (32, 96)])
@pytest.mark.parametrize(
    ("target", "layers", "v"),
    [("encoder", [2], 2), ("encoder", [1, 2], 1), ("decoder", [3], 3), ("decoder", [1, 2, 3], 2), ("both", [1, 3], 2)],
)
def test_the_memory_estimate_is_honest(
    make_backbone: Callable[..., Any], target: str, layers: list[int], v: int, widths: tuple[int, int]
) -> None:
    from sfkit_dust3r.memory import working_bytes

    enc, dec = widths
    backbone = make_backbone(enc_dim=enc, enc_hidden=4 * enc, dec_dim=dec, dec_hidden=4 * dec)
    images = torch.rand(2, v, 3, 96, 96)
    with torch.inference_mode():
        backbone(images, layers, target)  # tables are made once
        with Peak() as peak:
            backbone(images * 2 - 1, layers, target)
    estimate = working_bytes(backbone.config, target, (2, v, 96, 96), layers, product=4, residual=4)
    assert 0.9 < estimate / peak.most < 1.3


def test_the_estimate_before_loading_counts_requested_layers() -> None:
    def estimate(**options: Any) -> Any:
        return build_teacher(("dust3r", options)).memory((2, 2, 224, 224), [1], CPU)

    whole, encoder = estimate(), estimate(target="encoder")
    assert whole.weights == 4 * (530_767_872 - 768)
    assert encoder.weights == 4 * 303_098_880
    assert 0.45 < estimate(dtype="bfloat16").weights / whole.weights < 0.55
    assert estimate(size=224).working < 0.3 * whole.working
    assert estimate(micro_batch=1).working < 0.6 * whole.working


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", ["dust3r", "mast3r"])
@pytest.mark.parametrize("target", ["encoder", "decoder", "both"])
def test_a_policy_trains_with_it(name: str, target: str) -> None:
    policy = TinyPolicy()
    teacher = (name, {"config": "tiny", "size": 32, "target": target})
    policy = SpatialForcing.wrap(policy, teacher, adapter=TinyAdapter(policy), student_layer=2).train()
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-2)
    seen = []
    for _ in range(6):
        batch = tiny_batch(geometry=False)
        batch["present"] = torch.tensor([[True, True], [True, False]])
        loss, logs = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(logs["sf_loss"])
    assert seen[-1] < 0.9 * seen[0]
    assert not [key for key in policy.state_dict() if "enc_blocks" in key]


def test_the_license_is_said_at_wrap_time(caplog: pytest.LogCaptureFixture, checkpoint: Callable[..., Path]) -> None:
    def notes(teacher: Any) -> list[str]:
        caplog.clear()
        policy = TinyPolicy()
        with caplog.at_level(logging.WARNING, logger="sfkit"):
            SpatialForcing.wrap(policy, teacher, adapter=TinyAdapter(policy), student_layer=2)
        return [record.getMessage() for record in caplog.records if "non-commercial" in record.getMessage()]

    path = str(checkpoint())
    (note,) = notes(("mast3r", {"config": "tiny", "weights": path}))
    assert "CC-BY-NC-SA-4.0" in note
    assert path in note
    assert len(notes("dust3r")) == 1  # said before anything is fetched
    assert notes(("dust3r", {"config": "tiny"})) == []  # nobody's weights
