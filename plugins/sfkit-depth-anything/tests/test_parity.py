"""Numbers: the reference's fixtures where they are at hand, and our own recorded ones always."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sfkit_backbones.parity import Fixture, compare, record
from sfkit_backbones.weights import load_weights, without_weights
from sfkit_depth_anything.backbone import DepthAnythingBackbone
from sfkit_depth_anything.config import TINY, TINY_GATED, DepthAnythingConfig
from sfkit_depth_anything.parity import DepthAnythingParity
from sfkit_depth_anything.teachers import DA3Giant, DA3Small

from sfkit.errors import CheckpointError

OWN = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[4] / "shared" / "fixtures" / "da3_tiny.safetensors"


#: Our records hold what float64 gives, rounded, which costs 2**-24: the same on every processor.
TOLERANCE = 4 * 2**-24
#: The official classes were run in float32, which cost them 1.4e-6: that too is the same wherever it is compared.
OFFICIAL = 5e-6


def worst(path: Path) -> float:
    return max(difference.error for difference in compare(Fixture.load(path)))


@pytest.mark.skipif(not SHARED.is_file(), reason="the reference's fixtures are not beside this checkout")
def test_the_reference_is_met() -> None:
    differences = compare(Fixture.load(SHARED))
    assert {difference.case for difference in differences} == {"single", "pair", "triple_ref_select"}
    assert max(difference.error for difference in differences) <= OFFICIAL


@pytest.mark.parametrize("name", ["tiny", "gated_small_stream"])
def test_recorded_outputs_are_met(name: str) -> None:
    assert worst(OWN / f"{name}.safetensors") <= TOLERANCE


@pytest.mark.parametrize("name", ["tiny", "gated_small_stream"])
def test_recorded_cases_choose_another_reference_than_the_first(name: str) -> None:
    fixture = Fixture.load(OWN / f"{name}.safetensors")
    with without_weights():
        backbone = DepthAnythingParity().build(fixture.config, fixture.shapes)
    load_weights(backbone, fixture.path, prefix="sd.", ignored=["*.in.*", "*.out.*"])
    for case in ("triple", "quadruple_tall"):
        images = fixture.cases[case].inputs["images_normalised"]
        (chosen,), (first,) = backbone(images, [6]), backbone(images, [6], reference="first")
        assert (chosen - first).abs().max() > 0.01


WRONG: dict[str, Callable[[DepthAnythingBackbone], object]] = {
    "epsilon of the blocks": lambda backbone: [setattr(block.norm1, "eps", 1e-5) for block in backbone.blocks],
    "epsilon of queries": lambda backbone: [setattr(b.attn.q_norm, "eps", 1e-6) for b in backbone.blocks[3:]],
    "epsilon of the final norm": lambda backbone: setattr(backbone.norm, "eps", 1e-6),
    "camera tokens exchanged": lambda backbone: backbone.camera_token.data.copy_(backbone.camera_token.data.flip(1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_constant_shows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DepthAnythingParity.run

    def run(self: DepthAnythingParity, backbone: Any, *arguments: Any) -> Any:
        with torch.no_grad():
            if not hasattr(backbone, "spoilt"):
                WRONG[what](backbone)
                backbone.spoilt = True
        return original(self, backbone, *arguments)

    monkeypatch.setattr(DepthAnythingParity, "run", run)
    assert worst(OWN / "gated_small_stream.safetensors") > 10 * TOLERANCE


@pytest.mark.parametrize("config", [TINY, TINY_GATED, TINY.model_copy(update={"alt_start": 0, "num_layers": 4})])
def test_a_fixture_gives_the_configuration(config: DepthAnythingConfig) -> None:
    backbone, reader = DepthAnythingBackbone(config), DepthAnythingParity()
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    described = json.loads(json.dumps(reader.describe(config)))
    rebuilt = reader.build(described, shapes)
    assert isinstance(rebuilt, DepthAnythingBackbone)
    assert rebuilt.config == config


def test_recording_and_comparing_go_round(tmp_path: Path) -> None:
    for teacher in (DA3Small({"config": "tiny"}), DA3Giant({"config": "tiny"})):
        path = tmp_path / f"{teacher.name}.safetensors"
        record(teacher, path, seed=5)
        assert worst(path) <= TOLERANCE


def damaged(tmp_path: Path, drop: str) -> Path:
    source = OWN / "tiny.safetensors"
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(source)
    config = json.loads(metadata["config"])
    config.pop(drop, None)
    tensors = {key: value for key, value in tensors.items() if drop not in key}
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    return path


@pytest.mark.parametrize("drop", ["num_heads", "alt_start", "pos_embed", "mlp.fc2"])
def test_a_fixture_that_lacks_something_says_what(tmp_path: Path, drop: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not describe a backbone.*{drop}"):
        compare(Fixture.load(damaged(tmp_path, drop)))


def test_outputs_that_the_backbone_lacks_are_reported(tmp_path: Path) -> None:
    with safe_open(OWN / "tiny.safetensors", "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(OWN / "tiny.safetensors")
    tensors["single.out.layer17"] = tensors["single.out.layer5"].clone()
    save_file(tensors, tmp_path / "more.safetensors", metadata)
    notes = {d.output: d.note for d in compare(Fixture.load(tmp_path / "more.safetensors")) if d.note}
    assert notes == {"layer17": "not given"}
