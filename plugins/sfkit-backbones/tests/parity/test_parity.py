"""Fixtures: written, read, compared; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sfkit_backbones
import torch
from safetensors.torch import load_file, save_file
from sfkit_backbones.parity import BackboneParity, Case, Fixture, compare, record, save_fixture
from sfkit_backbones.testing import SmallBackbone, SmallConfig, SmallTeacher
from torch import Tensor, nn

import sfkit.registry.registry
from sfkit.cli import main
from sfkit.errors import CheckpointError, ConfigError, UnknownNameError
from sfkit.registry.registry import Entry, Registry
from sfkit.testing.checks import ROUNDING
from sfkit.testing.tiny import PatchTeacher


class SmallParity(BackboneParity):
    """Of the small backbone; ``double`` in a case's name asks for an option of it."""

    prefix = "backbone."
    ignored = ("backbone.unused",)

    def build(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        return SmallBackbone(SmallConfig(dim=shapes["backbone.first_view"][0]))

    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        images = inputs["images"] * (2 if "double" in case else 1)
        layers = [int(name.removeprefix("layer")) for name in wanted]
        return dict(zip(wanted, backbone(images, layers), strict=True))

    def describe(self, config: Any) -> dict[str, Any]:
        return {"heads": 2}

    def examples(self, config: Any) -> dict[str, tuple[dict[str, Tensor], list[str]]]:
        return {
            "pair": ({"images": torch.rand(1, 2, 3, 8, 8)}, ["layer1", "layer2"]),
            "double_single": ({"images": torch.rand(2, 1, 3, 4, 12)}, ["layer2"]),
        }


class KnownTeacher(SmallTeacher):
    name = "known"
    family = "small backbone"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(
        [
            Entry("parity", "small backbone", SmallParity, "tests"),
            Entry("teacher", "known", KnownTeacher, "tests"),
        ]
    )
    registry.add_plugin(sfkit_backbones, "sfkit-backbones")
    for module in ("sfkit_backbones.parity.comparing", "sfkit.factory.components", "sfkit.cli"):
        monkeypatch.setattr(f"{module}.default_registry", lambda: registry)
    return registry


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(KnownTeacher({"config": "tiny"}), tmp_path / "f.safetensors", seed=3)
    return tmp_path / "f.safetensors"


def rewrite(path: Path, config: dict[str, Any] | None = None, cases: list[str] | None = None, **tensors: Any) -> Path:
    fixture = Fixture.load(path)
    state = {**load_file(path), **tensors}
    metadata = {
        "config": json.dumps(dict(fixture.config) if config is None else config),
        "cases": json.dumps(list(fixture.cases) if cases is None else cases),
    }
    save_file({key: value for key, value in state.items() if value is not None}, path, metadata)
    return path


def test_what_was_recorded_compares_equal(recorded: Path) -> None:
    fixture = Fixture.load(recorded)
    assert fixture.config == {"model": "small backbone", "heads": 2}
    assert list(fixture.cases) == ["pair", "double_single"]
    differences = compare(fixture)
    assert [(d.case, d.output) for d in differences] == [
        ("pair", "layer1"), ("pair", "layer2"), ("double_single", "layer2"),
    ]  # fmt: skip
    assert max(d.error for d in differences) <= 1e-7, "the record is rounded, and nothing else"
    assert max(d.rounding for d in differences) <= ROUNDING[torch.float32]
    assert min(d.scale for d in differences) > 0.5


def test_a_case_that_the_reader_leaves_out_does_not_pass(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallParity, "outputs", lambda self, fixture: iter(()))
    found = compare(Fixture.load(recorded))
    assert len(found) == 3
    assert {(d.largest, d.note) for d in found} == {(torch.inf, "not given")}


def test_seed_and_stream_matter(recorded: Path, tmp_path: Path) -> None:
    record(KnownTeacher({"config": "tiny"}), tmp_path / "g.safetensors", seed=4)
    record(KnownTeacher({"config": "tiny"}), tmp_path / "h.safetensors", seed=3, stream=0.003)
    first, other, calm = (
        load_file(path) for path in (recorded, tmp_path / "g.safetensors", tmp_path / "h.safetensors")
    )
    assert not torch.equal(first["sd.backbone.first_view"], other["sd.backbone.first_view"])
    assert calm["pair.out.layer1"].abs().max() < 0.05 * first["pair.out.layer1"].abs().max()


def test_a_wrong_output_is_found(recorded: Path) -> None:
    wrong = load_file(recorded)["pair.out.layer2"]
    wrong[0, 1, 0, 0, 3] += 1e-3
    worst = max(compare(Fixture.load(rewrite(recorded, **{"pair.out.layer2": wrong}))), key=lambda d: d.largest)
    assert (worst.case, worst.output) == ("pair", "layer2")
    assert worst.largest == pytest.approx(1e-3, rel=0.01)


def test_what_is_wrong_in_float32_alone_is_found(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SmallParity.run

    def coarse(self: SmallParity, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Any) -> Any:
        found = right(self, backbone, case, inputs, wanted)
        return {key: value.half().float() if value.dtype == torch.float32 else value for key, value in found.items()}

    monkeypatch.setattr(SmallParity, "run", coarse)
    found = compare(Fixture.load(recorded))
    assert {d.largest for d in found} == {torch.inf}
    assert all("in float32 off by" in d.note for d in found)


@pytest.mark.parametrize(("value", "note"), [(torch.nan, "NaN"), (None, "shape")])
def test_nan_and_other_shapes_never_pass(recorded: Path, value: float | None, note: str) -> None:
    wrong = load_file(recorded)["pair.out.layer1"]
    wrong = wrong[..., :-1].contiguous() if value is None else wrong.fill_(value)
    found = compare(Fixture.load(rewrite(recorded, **{"pair.out.layer1": wrong})))[0]
    assert found.largest == torch.inf
    assert note in found.note


def test_fault_29_a_state_dict_that_does_not_fit_is_refused(recorded: Path) -> None:
    rewrite(recorded, **{"sd.backbone.blocks.0.norm1.bias": None, "sd.backbone.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing \(1\).*norm1\.bias.*unexpected \(1\): sd\.backbone\.extra"):
        compare(Fixture.load(recorded))


def test_keys_that_the_backbone_does_not_need_are_ignored(recorded: Path) -> None:
    assert compare(Fixture.load(rewrite(recorded, **{"sd.backbone.unused": torch.zeros(1)})))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": {}}, "is no fixture"),
        ({"cases": []}, "at least one name"),
        ({"cases": ["pair", "ghost"]}, "case 'ghost' lacks inputs"),
    ],
)
def test_other_files_are_no_fixtures(recorded: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        Fixture.load(rewrite(recorded, **changes))


def test_a_file_without_metadata_is_no_fixture(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="is no fixture"):
        Fixture.load(tmp_path / "plain.safetensors")


def test_an_unknown_model_says_what_is_known(recorded: Path) -> None:
    rewrite(recorded, config={"model": "smal backbone"})
    with pytest.raises(UnknownNameError, match="Did you mean 'small backbone'"):
        compare(Fixture.load(recorded))


def test_a_port_is_recorded_where_the_original_is(tmp_path: Path) -> None:
    """Whoever has the original needs only its state dict, inputs and outputs: no sfkit teacher."""
    original = SmallBackbone(SmallConfig(dim=12))
    images = torch.rand(1, 1, 3, 8, 8)
    case = Case({"images": images}, {"layer2": original(images, [2])[0]})
    state = {f"backbone.{key}": value for key, value in original.state_dict().items()}
    save_fixture(tmp_path / "o.safetensors", {"model": "small backbone"}, state, {"one": case})
    assert compare(Fixture.load(tmp_path / "o.safetensors"))[0].error <= 1e-5
    with pytest.raises(CheckpointError, match="exists"):
        save_fixture(tmp_path / "o.safetensors", {"model": "small backbone"}, state, {"one": case})
    with pytest.raises(CheckpointError, match="must name its model"):
        save_fixture(tmp_path / "p.safetensors", {}, state, {"one": case})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors"]


def test_a_teacher_without_a_family_cannot_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family"):
        record(PatchTeacher(), tmp_path / "x.safetensors")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["parity", *arguments])
    return int(caught.value.code or 0)


def test_the_command_records_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "c.safetensors")
    assert run(path, "--record", "--teacher", "known", "--teacher-options", "config=tiny,size=8") == 0
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "small backbone: 2 cases" in out
    assert "double_single  layer2" in out
    assert "PASSED: largest relative difference" in out


def test_the_command_fails_above_the_tolerance(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = load_file(recorded)["pair.out.layer2"]
    wrong[0, 1, 0, 0, 3] += 1e-4 * wrong.abs().max()
    rewrite(recorded, **{"pair.out.layer2": wrong})
    assert run(str(recorded)) == 1
    assert "FAILED: largest relative difference 1.0" in capsys.readouterr().out
    assert run(str(recorded), "--tolerance", "1e-3") == 0


def test_the_command_prints_errors_without_a_traceback(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tmp_path / "none.safetensors")) == 1
    assert run(str(tmp_path / "new.safetensors"), "--record") == 1
    assert run(str(recorded), "--record", "--teacher", "known") == 1
    printed = capsys.readouterr().err
    assert "There is no file" in printed
    assert "--record needs a teacher" in printed
    assert "exists" in printed


def test_the_registry_knows_the_hook() -> None:
    assert sfkit.registry.registry._HOOKS["parity"] == "register_parity"
