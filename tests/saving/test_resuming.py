"""A resumed run is the one that was saved: all options are compared, and versions that differ are a warning."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sfkit import SfkitWarning, SpatialForcing
from sfkit.config import Options
from sfkit.errors import CheckpointError, ConfigError
from sfkit.objectives.distances import CosineObjective
from sfkit.registry.component import Changeable, Harmless, Reaching
from sfkit.registry.registry import Entry, Registry, default_registry
from sfkit.saving import checkpoint
from sfkit.testing.tiny import PatchTeacher, PatchTeacherOptions, TinyAdapter, TinyPolicy, tiny_batch

Install = Callable[..., None]


class PlacedOptions(PatchTeacherOptions):
    """A teacher's options, one of which says how it computes."""

    weights: Reaching[str | None] = None
    micro_batch: Changeable[int | None] = None


class Placed(PatchTeacher):
    name = "placed"
    Options: ClassVar[type[Options]] = PlacedOptions


def objective(**fields: Any) -> type[CosineObjective]:
    """The objective ``plugged`` of a plugin, whose version decides which options it has."""
    options = type("PluggedOptions", (Options,), {"__annotations__": dict.fromkeys(fields, Harmless[Any]), **fields})
    return type("Plugged", (CosineObjective,), {"name": "plugged", "Options": options})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """``install("1.0", temperature=0.1)``: a version of the plugin ``sfkit-plugged``, and these defaults."""
    core = [*default_registry().entries, Entry("teacher", "placed", Placed, "tests")]
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])

    def install(version: str, **fields: Any) -> None:
        shutil.rmtree(tmp_path / "site")
        info = tmp_path / "site" / f"sfkit_plugged-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sfkit-plugged\nVersion: {version}\n")
        plugged = Entry("objective", "plugged", objective(**fields), "sfkit-plugged")
        monkeypatch.setattr(default_registry(), "entries", [*core, plugged])

    install("1.0", temperature=0.1)
    return install


def wrapped(teacher: Any = "placed", **arguments: Any) -> Any:
    torch.manual_seed(0)
    policy = TinyPolicy()
    pairs = {} if "pairs" in arguments else {"teacher": teacher, "student_layer": 2}
    adapter = arguments.pop("adapter", {})
    return SpatialForcing.wrap(policy, adapter=TinyAdapter(policy, adapter), **{**pairs, **arguments}).spatial_forcing


def saved(folder: Path, **arguments: Any) -> Path:
    handle = wrapped(**arguments)
    handle.adapter.policy(tiny_batch())[0].backward()
    handle.save(folder)
    return folder / checkpoint.FOLDER


def resumed(folder: Path, **arguments: Any) -> Any:
    policy = TinyPolicy()
    return SpatialForcing.from_pretrained(policy, folder, adapter=TinyAdapter(policy), **arguments).spatial_forcing


SUM = ("sum", {"terms": [("cosine", 1.0), (("relational", {"scope": "within"}), 0.5)]})
RUN: dict[str, Any] = {
    "objective": "info-nce",
    "transforms": [("spatial-norm", {"gamma": 0.5})],
    "projector": "mlp",
}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "teacher option": (
        {"teacher": ("placed", {"joint": True})},
        r"pairs\.0\.teacher\.options\.joint was False .* True",
    ),
    "teacher": ({"teacher": PatchTeacher()}, r"pairs\.0\.teacher\.name was 'placed' and is 'patch'"),
    "teacher layer": ({"teacher_layer": 1}, r"pairs\.0\.teacher_layer was 3 and is 1"),
    "student layer": ({"student_layer": 1}, r"pairs\.0\.student_layer was 2 and is 1"),
    "objective option": (
        {"objective": ("info-nce", {"temperature": 0.2})},
        r"pairs\.0\.objective\.options\.temperature was 0\.07 and is 0\.2",
    ),
    "objective": ({"objective": "cosine"}, r"pairs\.0\.objective\.name was 'info-nce' and is 'cosine'"),
    "transform option": ({"transforms": ["spatial-norm"]}, r"transforms\.\d\.options\.gamma was 0\.5 and is 0\.6"),
    "fewer transforms": ({"transforms": []}, r"pairs\.0\.transforms\.\d was {'name': .*} and is absent"),
    "projector option": ({"projector": ("mlp", {"norm": False})}, r"projector\.options\.norm was True and is False"),
    "adapter option": ({"adapter": {"token_shift": 1}}, r"adapter\.options\.token_shift was 0 and is 1"),
    "pair reduction": ({"pair_reduction": "mean"}, r"pair_reduction was 'sum' and is 'mean'"),
    "weight": ({"weight": 0.1}, r"weight was 0\.5 and is 0\.1"),
    "schedule": ({"schedule": "stop:9"}, r"schedule\.0 was absent and is {'name': 'stop', 'options': {'at': 9}}"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_fault_75_another_option_is_an_error_with_both_values(case: str, install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, **RUN)
    changes, message = OTHERS[case]
    handle = wrapped(**{**RUN, **changes})
    before = {key: value.clone() for key, value in handle.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_into(handle, folder)
    assert all(torch.equal(value, before[key]) for key, value in handle.state_dict().items())
    checkpoint.load_into(wrapped(**RUN), folder)


@pytest.mark.parametrize("case", [case for case in OTHERS if case not in ("weight", "schedule", "adapter option")])
def test_fault_75_an_argument_given_again_must_be_the_same(case: str, install: Install, tmp_path: Path) -> None:
    saved(tmp_path, **RUN)
    changes, message = OTHERS[case]
    pair = {"student_layer": 2, "teacher": "placed", "teacher_layer": 3}
    own = {key: changes[key] for key in pair if key in changes}
    rest = {key: value for key, value in changes.items() if key not in own}
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, **({"pairs": [{**pair, **own}]} if own else {}), **rest)
    assert resumed(tmp_path, pairs=[pair], **RUN).steps == 1


def test_fault_75_options_of_a_saved_component_are_compared(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective="info-nce")
    assert resumed(folder, options={"placed": {"micro_batch": 1}, "info-nce": {"negatives": "sample"}}).steps == 1
    with pytest.raises(CheckpointError, match=r"negatives was 'sample' and is 'view'"):
        resumed(folder, options={"info-nce": {"negatives": "view"}})


def test_fault_75_options_inside_of_others_are_compared(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective=SUM)
    same = ("sum", {"terms": ["cosine", ("relational", 0.5)]})
    with pytest.raises(ConfigError, match="terms"):
        wrapped(objective=same)
    same[1]["terms"] = [("cosine", 1), ("relational", 0.5)]
    checkpoint.load_into(wrapped(objective=same), folder)
    other = ("sum", {"terms": [("cosine", 1), (("relational", {"margin": 0.1}), 0.5)]})
    with pytest.raises(CheckpointError, match=r"terms\.1\.objective\.options\.margin was 0\.0 and is 0\.1"):
        checkpoint.load_into(wrapped(objective=other), folder)


def test_it_does_not_matter_who_names_a_pairs_objective(install: Install, tmp_path: Path) -> None:
    pair = {"student_layer": 2, "teacher": "placed"}
    folder = saved(tmp_path, pairs=[{**pair, "objective": "mse"}], objective="cosine")
    checkpoint.load_into(wrapped(pairs=[pair], objective="mse"), folder)
    checkpoint.load_into(wrapped(pairs=[{**pair, "objective": "mse"}], objective="smooth-l1"), folder)


def test_how_a_run_is_computed_may_change(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, recompute="none")
    settings = {
        "recompute": "full", "attach_loss": "return", "grad_accumulation": 2, "seed": 3, "health": {"every": 7},
        "self_check": False, "teacher": ("placed", {"micro_batch": 1}),
    }  # fmt: skip
    handle = wrapped(**settings)
    checkpoint.load_into(handle, folder)
    assert handle.steps == 1
    assert handle.runners[0].teacher.options.micro_batch == 1


def test_weight_and_schedule_change_where_they_are_given(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, weight="balance:0.2", schedule="conflict")
    changes: dict[str, Any] = {"weight": 0.1, "schedule": "stop:9"}
    assert resumed(folder, **changes).steps == 1
    with pytest.raises(CheckpointError, match=r"weight was 'balance:0\.2' and is 0\.1; schedule"):
        checkpoint.load_into(wrapped(**changes), folder)
    with pytest.raises(CheckpointError, match=r"json: schedule\.0\.name was 'conflict' and is 'stop'\.\n"):
        checkpoint.load_into(wrapped(**changes), folder, given=["weight", "pairs"])


def test_a_change_that_is_meant_is_written_into_the_file(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, **RUN)
    handle = wrapped(**{**RUN, "objective": ("info-nce", {"temperature": 0.2})})
    with pytest.raises(CheckpointError, match="write it into that file too"):
        checkpoint.load_into(handle, folder)
    text = (folder / "config.json").read_text()
    assert text.count('"temperature": 0.07') == 1
    (folder / "config.json").write_text(text.replace('"temperature": 0.07', '"temperature": 0.2'))
    checkpoint.load_into(handle, folder)


def test_fault_75_a_file_that_lies_elsewhere_is_the_same(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    folder = saved(tmp_path / "run", teacher=("placed", {"weights": str(file)}))
    moved = shutil.copy(file, tmp_path / "b.safetensors")
    checkpoint.load_into(wrapped(("placed", {"weights": str(moved)})), folder)
    (tmp_path / "b.safetensors").write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"weights was {'sha256': '\w{64}'} and is {'sha256': '\w{64}'}"):
        checkpoint.load_into(wrapped(("placed", {"weights": str(moved)})), folder)


# ------------------------------------------------------------------------------------------------ other versions


def test_fault_76_a_default_that_a_plugin_changed_is_not_taken(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective="plugged")
    install("1.0", temperature=0.5)
    assert wrapped(objective="plugged").pairs[0].objective.options.temperature == 0.5
    handle = resumed(folder)
    assert handle.pairs[0].objective.options.temperature == 0.1
    handle.save(tmp_path / "again")
    assert resumed(tmp_path / "again").pairs[0].objective.options.temperature == 0.1


def test_fault_76_a_run_with_the_new_default_is_another_one(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective="plugged")
    install("2.0", temperature=0.5)
    with pytest.raises(
        CheckpointError, match=r"temperature was 0\.1 and is 0\.5\. .*sfkit-plugged '1\.0' \(now '2\.0'"
    ):
        checkpoint.load_into(wrapped(objective="plugged"), folder)


def test_fault_76_the_options_of_all_components_are_saved(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective=SUM, schedule="cosine:100", transforms=["spatial-norm"])
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["adapter"]["options"] == {"token_shift": 0}
    assert config["pairs"][0]["teacher"]["options"].keys() == PlacedOptions.model_fields.keys()
    assert config["objective"]["options"]["terms"][1]["objective"]["options"]["margin"] == 0.0
    assert config["projector"]["options"] == {"hidden": None, "norm": True}
    assert config["schedule"] == [{"name": "cosine", "options": {"steps": 100, "delay": 0, "to": 0.0}}]
    assert [item["options"] for item in config["transforms"] if item["name"] == "spatial-norm"] == [
        {"gamma": 0.6, "eps": 1e-6}
    ]


def test_an_option_that_a_plugin_dropped_is_an_error(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective="plugged")
    install("2.0")
    with pytest.raises(
        ConfigError, match=r"config\.json was written with sfkit-plugged '1\.0', where '2\.0'.*temperat"
    ):
        resumed(folder)
    with pytest.raises(CheckpointError, match=r"options\.temperature was 0\.1 and is absent\. It was saved with sfkit"):
        checkpoint.load_into(wrapped(objective="plugged"), folder)


def test_fault_77_an_option_that_a_plugin_added_is_named(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective="plugged")
    install("1.0", temperature=0.1, margin=0.25)
    with pytest.warns(
        SfkitWarning, match=r"saved with other code\. pairs\.0\.objective\.options\.margin is new, and 0"
    ):
        assert resumed(folder).pairs[0].objective.options.margin == 0.25


def test_fault_77_other_versions_are_one_warning(install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path, objective=("sum", {"terms": [("plugged", 1.0), ("cosine", 1.0)]}))
    record = json.loads((folder / "config.json").read_text())
    assert record["versions"] == {"sfkit-plugged": "1.0", "tests": "unknown", **_core()}
    resumed(folder)  # the same versions: no warning
    install("1.1", temperature=0.1)
    record["versions"]["spatial-forcing"] = "0.0.\x1b1"
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.warns(SfkitWarning) as caught:
        resumed(folder)
    (message,) = [str(item.message) for item in caught]
    assert "sfkit-plugged '1.0' (now '1.1')" in message
    assert "spatial-forcing '0.0.\\x1b1' (now" in message


def _core() -> dict[str, str]:
    from sfkit import __version__

    return {"spatial-forcing": __version__}


@pytest.mark.parametrize(("key", "value"), [("versions", None), ("versions", [1]), ("policy_files", 3)])
def test_a_damaged_record_is_an_error(key: str, value: Any, install: Install, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(CheckpointError, match=r"config\.json could not be read"):
        resumed(folder)


def test_all_options_of_each_component_are_read_back() -> None:
    checked = 0
    registry: Registry = default_registry()
    for entry in registry.entries:
        options = getattr(entry.load(), "Options", None) if entry.target is not None else None
        if options is None or any(field.is_required() for field in options.model_fields.values()):
            continue
        default = options()
        assert options.parse(entry.name, json.loads(json.dumps(default.model_dump(mode="json")))) == default, entry.name
        checked += 1
    assert checked > 10
