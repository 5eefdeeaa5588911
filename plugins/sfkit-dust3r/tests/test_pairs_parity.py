"""Recorded outputs of the official classes, our own records, and fixtures of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sfkit_backbones.parity import Case, Fixture, compare, record
from sfkit_backbones.parity.fixture import save_fixture

from sfkit.errors import CheckpointError, ConfigError
from sfkit.factory.components import build_teacher

HERE = Path(__file__).parent / "fixtures"


#: Our records hold what float64 gives, rounded, which costs 2**-24: the same on every processor.
TOLERANCE = 4 * 2**-24
#: The official classes were run in float32, which cost them 1.4e-6: that too is the same wherever it is compared.
OFFICIAL = 5e-6


def largest(path: Path) -> float:
    differences = compare(Fixture.load(path))
    assert differences
    return max(difference.error for difference in differences)


def test_the_official_classes_outputs(shared: Path) -> None:
    assert largest(shared / "fixtures" / "dust3r_tiny.safetensors") < OFFICIAL


@pytest.mark.parametrize("name", ["pairs", "pairs_smallvar"])
def test_our_own_records(name: str) -> None:
    path = HERE / f"{name}.safetensors"
    assert path.stat().st_size < 1.5e6
    assert largest(path) < TOLERANCE


def test_a_wrong_epsilon_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    import sfkit_dust3r.backbone

    monkeypatch.setattr(sfkit_dust3r.backbone, "_EPS", 1e-5)
    assert largest(HERE / "pairs_smallvar.safetensors") > 1e-3


def write(path: Path, backbone: Any, reference: Any, sizes: list[tuple[int, int]], batch: int = 1) -> None:
    """A fixture whose outputs come from the plain implementation."""
    images = [torch.rand(batch, 3, *size) * 2 - 1 for size in sizes]
    outputs = {}
    for one, two in zip(*images, strict=True):
        for view, found in enumerate(reference.pair(one, two), 1):
            for k, values in enumerate(found):
                outputs.setdefault(f"view{view}.{k}", []).append(values.float())
    stacked = {name: torch.stack(values) for name, values in outputs.items()}
    config = {"model": "DUSt3R trunk", "enc_heads": backbone.config.enc_heads, "dec_heads": backbone.config.dec_heads}
    state = {
        **backbone.state_dict(),
        "mask_token": torch.zeros(1, 1, 4),
        "downstream_head1.proj.weight": torch.zeros(2),
    }
    path.unlink(missing_ok=True)
    save_fixture(path, config, state, {"case": Case({"img1": images[0], "img2": images[1]}, stacked)})


@given(
    enc=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    dec=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
    grids=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    batch=st.integers(1, 2),
    patch=st.sampled_from([2, 16]),
    shared_decoder=st.booleans(),
)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fixtures_of_any_size_agree_with_the_plain_code(
    tmp_path: Path, make_backbone: Callable[..., Any], reference_of: Callable[..., Any], enc: Any, dec: Any, grids: Any,
    batch: int, patch: int, shared_decoder: bool,
) -> None:  # fmt: skip
    sizes = {
        "enc_heads": enc[0], "enc_dim": 8 * enc[0] * enc[1], "enc_layers": enc[2], "enc_hidden": 20,
        "dec_heads": dec[0], "dec_dim": 8 * dec[0] * dec[1], "dec_layers": dec[2], "dec_hidden": 12,
        "patch": patch, "shared_decoder": shared_decoder,
    }  # fmt: skip
    backbone = make_backbone(seed=1, **sizes)
    pixels = [(rows * patch, columns * patch) for rows, columns in grids]
    write(tmp_path / "pairs.safetensors", backbone, reference_of(backbone), pixels, batch)
    for found in compare(Fixture.load(tmp_path / "pairs.safetensors")):
        assert found.error < TOLERANCE, found


def test_a_fixture_of_the_encoder_alone(tmp_path: Path) -> None:
    record(build_teacher(("dust3r", {"config": "tiny", "target": "encoder"})), tmp_path / "encoder.safetensors", seed=3)
    fixture = Fixture.load(tmp_path / "encoder.safetensors")
    assert not [key for key in fixture.shapes if key.startswith("dec")]
    assert {key for case in fixture.cases.values() for key in case.outputs} == {"view1.0", "view2.0"}
    assert largest(tmp_path / "encoder.safetensors") < TOLERANCE


def test_an_output_that_does_not_exist_is_named(tmp_path: Path, make_backbone: Callable[..., Any]) -> None:
    backbone = make_backbone()
    images = torch.zeros(1, 3, 16, 16)
    outputs = {"view1.4": torch.zeros(1, 1, 24), "view3.0": torch.zeros(1, 1, 24), "view1.0": torch.zeros(1, 2, 24)}
    config = {"model": "DUSt3R trunk", "enc_heads": 2, "dec_heads": 2}
    case = Case({"img1": images, "img2": images}, outputs)
    save_fixture(tmp_path / "odd.safetensors", config, backbone.state_dict(), {"case": case})
    notes = {found.output: found.note for found in compare(Fixture.load(tmp_path / "odd.safetensors"))}
    assert notes["view1.4"] == "not given"
    assert notes["view3.0"] == "not given"
    assert "shape" in notes["view1.0"]


def test_what_a_fixture_lacks_is_named(tmp_path: Path, make_backbone: Callable[..., Any]) -> None:
    state, images = make_backbone().state_dict(), torch.zeros(1, 3, 16, 16)
    cases = {"case": Case({"img1": images, "img2": images}, {"view1.0": torch.zeros(1, 1, 32)})}
    save_fixture(tmp_path / "a.safetensors", {"model": "DUSt3R trunk", "dec_heads": 2}, state, cases)
    with pytest.raises(CheckpointError, match="lacks 'enc_heads'"):
        compare(Fixture.load(tmp_path / "a.safetensors"))
    rest = {key: value for key, value in state.items() if key != "enc_norm.weight"}
    config = {"model": "DUSt3R trunk", "enc_heads": 2, "dec_heads": 2}
    save_fixture(tmp_path / "b.safetensors", config, rest, cases)
    with pytest.raises(CheckpointError, match=r"lacks 'enc_norm\.weight'"):
        compare(Fixture.load(tmp_path / "b.safetensors"))
    save_fixture(tmp_path / "c.safetensors", {**config, "enc_heads": "two"}, state, cases)
    with pytest.raises(ConfigError, match="enc_heads"):
        compare(Fixture.load(tmp_path / "c.safetensors"))
