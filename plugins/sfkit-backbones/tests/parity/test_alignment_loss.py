"""Spatial Forcing as released: target, loss and gradients, by its presets, against records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors.torch import load_file
from sfkit_backbones.parity import Case, Fixture, compare, save_fixture
from torch import Tensor

from sfkit.cli import main
from sfkit.errors import CheckpointError
from sfkit.presets.published import SPATIAL_FORCING_OPENVLA
from sfkit.testing.checks import relative_difference

#: Written by :func:`record` with seed 11.
OWN = Path(__file__).parent / "fixtures" / "alignment_loss.safetensors"
#: Recorded from the released code; not everywhere at hand.
RELEASED = Path(__file__).parents[5] / "shared" / "fixtures" / "sf_loss.safetensors"
CASES: dict[str, dict[str, Any]] = {
    "openvla": {"views": 2, "teacher_grid": 37, "student_grid": 16, "target_pe": True, "masked": False},
    "openvla_no_pe": {"views": 1, "teacher_grid": 9, "student_grid": 4, "target_pe": False, "masked": False},
    "pi0_masked": {"views": 3, "teacher_grid": 9, "student_grid": 4, "target_pe": True, "masked": True},
    "native": {"views": 2, "teacher_grid": 5, "student_grid": 5, "target_pe": True, "masked": False},
}


# ------------------------------------------------------------------------------- the same once more, one by one


def code(row: int, column: int, side: int, dim: int) -> list[float]:
    """The position code of one patch of a square grid."""
    channels = []
    for place in (column, row):
        end = math.sqrt(0.5) * (side - 1) / side
        angles = [(2 * place / (side - 1) - 1) * end / 100 ** (k / (dim // 4)) for k in range(dim // 4)]
        channels += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return channels


def plain_target(features: Tensor, settings: dict[str, Any]) -> Tensor:
    """``(b, v, s, d)`` float64 to ``(b, n, d)``."""
    own, side, dim = settings["teacher_grid"], settings["student_grid"], features.shape[-1]
    codes = torch.tensor([code(i // own, i % own, own, dim) for i in range(own * own)], dtype=features.dtype)
    views = []
    for view in range(settings["views"]):
        found = features[:, view] + (0.1 * codes if settings["target_pe"] else 0)
        grid = found.reshape(-1, own, own, dim).permute(0, 3, 1, 2)
        views.append(F.interpolate(grid, (side, side), mode="bilinear", align_corners=True).flatten(2).mT)
    return torch.cat(views, 1)


def plain_loss(hidden: Tensor, target: Tensor, mask: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Sample by sample, token by token."""
    samples = []
    for one, wanted, valid in zip(hidden, target, mask, strict=True):
        tokens = []
        for token, feature in zip(one[valid], wanted[valid], strict=True):
            centered = token - token.mean()
            normed = centered / (centered.square().mean() + 1e-5).sqrt()
            normed = normed * weights["vlm_norm.weight"] + weights["vlm_norm.bias"]
            inner = F.gelu(weights["fc1.weight"] @ normed + weights["fc1.bias"])
            projected = weights["fc2.weight"] @ inner + weights["fc2.bias"]
            tokens.append(1 - projected @ feature / (projected.norm() * feature.norm()))
        samples.append(torch.stack(tokens).mean())
    return torch.stack(samples).mean()


def plain_case(settings: dict[str, Any], seed: int, student_dim: int = 6, teacher_dim: int = 8) -> Case:
    """Random inputs, and outputs in float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    b, v, n = 1 + settings["masked"], settings["views"], settings["views"] * settings["student_grid"] ** 2
    shapes = {
        "vlm_norm.weight": (student_dim,), "vlm_norm.bias": (student_dim,), "fc1.weight": (teacher_dim, student_dim),
        "fc1.bias": (teacher_dim,), "fc2.weight": (teacher_dim, teacher_dim), "fc2.bias": (teacher_dim,),
    }  # fmt: skip
    hidden, features = draw(b, n, student_dim), 3 * draw(b, v, settings["teacher_grid"] ** 2, teacher_dim)
    weights = {key: draw(*shape) for key, shape in shapes.items()}
    # Samples with different numbers of valid tokens tell a mean of means from a mean of all.
    share = torch.tensor([0.9, 0.3])[:b, None] if settings["masked"] else torch.ones(b, 1)
    mask = torch.rand(b, n, generator=g) < share

    wide = {key: value.double().requires_grad_() for key, value in weights.items()}
    tokens = hidden.double().requires_grad_()
    target = plain_target(features.double(), settings)
    loss = plain_loss(tokens, target, mask, wide)
    loss.backward()
    grads = {f"grad_projector.{key}": value.grad for key, value in wide.items()}
    outputs = {"target": target, "loss": loss.detach().reshape(1), "grad_hidden": tokens.grad, **grads}
    inputs = {"student_hidden": hidden, "teacher_features": features}
    inputs |= {f"projector.{key}": value for key, value in weights.items()}
    inputs |= {"mask": mask} if settings["masked"] else {}
    return Case(inputs, {key: value.float() for key, value in outputs.items() if value is not None}, settings)


def record(path: Path, seed: int) -> None:
    """Write a record of the loops above."""
    cases = {name: plain_case(settings, seed + index) for index, (name, settings) in enumerate(CASES.items())}
    save_fixture(path, {"model": "alignment loss"}, {}, cases)


# -------------------------------------------------------------------------------------------------------- tests


def test_the_record_is_what_the_plain_loops_give(tmp_path: Path) -> None:
    record(tmp_path / "again.safetensors", 11)
    kept, again = load_file(OWN), load_file(tmp_path / "again.safetensors")
    assert kept.keys() == again.keys()
    for key, value in kept.items():
        # Both are rounded from float64; 2**-23 is one step of float32 at the largest value.
        assert relative_difference(value, again[key]) <= 2**-23, key


@pytest.mark.parametrize("path", [OWN, RELEASED], ids=["own", "released"])
def test_fault_16_18_target_loss_gradients_equal_released_code(path: Path) -> None:
    if not path.is_file():
        pytest.skip("the record of the released loss is not here")
    fixture = Fixture.load(path)
    assert list(fixture.cases) == list(CASES)
    found = compare(fixture)
    assert len(found) == 4 * 9
    assert all(difference.scale > 0 for difference in found)
    assert {(d.case, d.output): d.error for d in found if d.error > 1e-5} == {}


def test_the_command_passes_and_counts_relative_to_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["parity", str(OWN)])
    assert not ended.value.code
    assert "PASSED: largest relative difference" in capsys.readouterr().out
    fixture = Fixture.load(OWN)
    case = fixture.cases["native"]
    wrong = case.outputs["grad_hidden"].clone()
    wrong[0, 3, 1] += 1e-4 * wrong.abs().max()
    save_fixture(
        tmp_path / "wrong.safetensors", fixture.config, {},
        {"native": Case(case.inputs, {**case.outputs, "grad_hidden": wrong}, case.settings)},
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["parity", str(tmp_path / "wrong.safetensors")])
    assert ended.value.code == 1
    assert "FAILED: largest relative difference 1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("quirk", "arguments"),
    [
        ("token_shift", {"adapter": {}}),
        ("align_corners", {"transforms": (SPATIAL_FORCING_OPENVLA.arguments["transforms"][0], "resample")}),
        ("scale", {"transforms": ("position-code", SPATIAL_FORCING_OPENVLA.arguments["transforms"][1])}),
        ("order", {"transforms": tuple(reversed(SPATIAL_FORCING_OPENVLA.arguments["transforms"]))}),
    ],
)
def test_without_one_of_its_quirks_the_preset_would_not_pass(
    quirk: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = SPATIAL_FORCING_OPENVLA.model_copy(
        update={"arguments": {**SPATIAL_FORCING_OPENVLA.arguments, **arguments}}
    )
    monkeypatch.setattr("sfkit.presets.published.SPATIAL_FORCING_OPENVLA", changed)
    found = [d for d in compare(Fixture.load(OWN)) if d.case == "openvla"]
    assert max(d.error for d in found) > 1e-3, quirk


def test_a_record_that_lacks_something_says_what(tmp_path: Path) -> None:
    case = Fixture.load(OWN).cases["native"]
    inputs = {key: value for key, value in case.inputs.items() if key != "teacher_features"}
    save_fixture(
        tmp_path / "f.safetensors",
        {"model": "alignment loss"},
        {},
        {"native": Case(inputs, case.outputs, case.settings)},
    )
    with pytest.raises(CheckpointError, match=r"'native' is no record of an alignment loss.*teacher_features"):
        compare(Fixture.load(tmp_path / "f.safetensors"))
