"""A checkpoint may be hostile: what it asks for beyond numbers and fixed words is the caller's to give."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from sfkit import SpatialForcing
from sfkit.config import Options
from sfkit.errors import CheckpointError, ConfigError, TrustError
from sfkit.objectives.distances import MSEObjective
from sfkit.registry.component import Harmless, Reaching
from sfkit.registry.registry import Entry, default_registry
from sfkit.saving import hub
from sfkit.saving.trust import public_text
from sfkit.testing.tiny import PatchTeacher, PatchTeacherOptions, TinyAdapter, TinyPolicy
from sfkit.utils.places import digest_of

MADE: list[dict[str, Any]] = []


class RiskyOptions(PatchTeacherOptions):
    """What a stranger's teacher may have; ``run_code`` was forgotten."""

    weights: Reaching[str | None] = None
    label: Harmless[str] = ""
    run_code: bool = False


class Risky(PatchTeacher):
    name = "risky"
    Options: ClassVar[type[Options]] = RiskyOptions
    options: RiskyOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        MADE.append(self.options.model_dump())

    @property
    def identity(self) -> dict[str, str]:
        return {**super().identity, "weights": str(self.options.weights)}


class NamedRisky(Risky):
    """As ``named:<weights>``, so that a path is in its name."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"named:{self.options.weights}" if hasattr(self, "options") else "named"


class LooseOptions(Options, extra="allow"):
    """A plugin that takes whatever it is given."""


class Loose(MSEObjective):
    name = "loose"
    Options: ClassVar[type[Options]] = LooseOptions


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [
        Entry("teacher", "risky", Risky, "tests"),
        Entry("teacher", "named", NamedRisky, "tests", argument="weights"),
        Entry("objective", "loose", Loose, "tests"),
    ]
    monkeypatch.setattr(default_registry(), "entries", [*default_registry().entries, *here])
    MADE.clear()


def policy() -> TinyPolicy:
    torch.manual_seed(0)
    return TinyPolicy()


def saved(folder: Path, teacher: Any, **arguments: Any) -> Path:
    """A checkpoint of sfkit alone, trained with ``teacher``."""
    plain = policy()
    SpatialForcing.wrap(plain, teacher, student_layer=2, adapter=TinyAdapter(plain), **arguments)
    plain.spatial_forcing.save(folder)  # type: ignore[attr-defined]
    MADE.clear()
    return folder


def load(source: Path | str, **arguments: Any) -> Any:
    plain = policy()
    return SpatialForcing.from_pretrained(plain, source, adapter=TinyAdapter(plain), **arguments).spatial_forcing


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spatial_forcing" / "config.json").read_text())
    return found


def edit(folder: Path, change: Any) -> Path:
    record = config_of(folder)
    change(record["config"])
    (folder / "spatial_forcing" / "config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``on_the_hub(folder)``: the name of a repository that holds it, as it lies in the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def publish(folder: Path) -> str:
        cache = tmp_path / "hub" / "models--somebody--run"
        shutil.copytree(folder, cache / "snapshots" / "0123abcd")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0123abcd")
        return "somebody/run"

    return publish


def as_printed(error: TrustError) -> dict[str, Any]:
    """The keyword that an error asks for, read from what it prints."""
    call = error.remedy.partition(", add ")[2].removesuffix(" to the call.")
    assert call.startswith("options=")
    found: dict[str, Any] = ast.literal_eval(call.removeprefix("options="))
    return found


def test_fault_56_an_unmarked_option_is_taken_from_no_file(tmp_path: Path) -> None:
    folder = saved(tmp_path, ("risky", {"run_code": True}))
    with pytest.raises(TrustError, match=r"config\.json asks for teacher 'risky' with run_code=True") as caught:
        load(folder)
    assert MADE == [], "nothing may be built before the check"
    assert as_printed(caught.value) == {"risky": {"run_code": True}}


def test_fault_56_permission_is_given_anew_in_every_call(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", ("risky", {"run_code": True}))
    permitted = load(folder, options={"risky": {"run_code": True}})
    assert MADE[-1]["run_code"] is True
    permitted.save(tmp_path / "b")
    for source in (folder, tmp_path / "b"):
        with pytest.raises(TrustError, match="run_code"):
            load(source)
    assert load(folder, options={"risky": {"run_code": False}}).runners[0].teacher.options.run_code is False


def test_fault_56_the_hub_names_no_other_place(tmp_path: Path, on_the_hub: Any) -> None:
    repo = on_the_hub(saved(tmp_path / "run", ("risky", {"weights": "owner/model", "dim": 8})))
    with pytest.raises(TrustError, match=r"repository 'somebody/run' asks for .*weights='owner/model'") as caught:
        load(repo)
    assert MADE == []
    handle = load(repo, options=as_printed(caught.value))
    assert (handle.runners[0].teacher.options.weights, handle.runners[0].teacher.options.dim) == ("owner/model", 8)


def test_fault_56_a_place_in_a_name_counts_too(tmp_path: Path, on_the_hub: Any) -> None:
    repo = on_the_hub(saved(tmp_path / "run", "named:owner/model"))
    with pytest.raises(TrustError, match="weights='owner/model'") as caught:
        load(repo)
    assert as_printed(caught.value) == {"named:owner/model": {"weights": "owner/model"}}
    assert load(repo, options=as_printed(caught.value)).runners[0].teacher.name == "named:owner/model"
    assert load(repo, options={"named:owner/model": {"weights": "my/own"}}).runners[0].teacher.name == "named:my/own"


def test_fault_56_a_local_file_names_places_and_it_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, ("risky", {"weights": "owner/model"}))
    caplog.clear()
    assert load(folder).runners[0].teacher.options.weights == "owner/model"
    assert any("names weights='owner/model' of teacher 'risky'" in record.getMessage() for record in caplog.records)


def test_fault_56_who_permits_code_names_whose(tmp_path: Path) -> None:
    folder = saved(tmp_path, ("risky", {"weights": "owner/model", "run_code": True}))
    with pytest.raises(TrustError, match="weights='owner/model'") as caught:
        load(folder, options={"risky": {"run_code": True}})
    assert MADE == []
    given = {"risky": {**as_printed(caught.value)["risky"], "run_code": True}}
    assert load(folder, options=given).runners[0].teacher.options.run_code


def test_any_file_sets_harmless_options(tmp_path: Path, on_the_hub: Any) -> None:
    options = {"label": "/not/a/path", "dim": 8, "joint": True}
    teacher = load(on_the_hub(saved(tmp_path / "run", ("risky", options)))).runners[0].teacher
    assert teacher.options.model_dump(exclude_defaults=True) == options


class Anything:
    """A component of any kind; what it would do matters not, because it is not built."""

    class Options(Options):
        run: bool = False


RUN = {"name": "anything", "options": {"run": True}}


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        *((kind, False) for kind in ("adapter", "objective", "projector", "transforms", "schedule")),
        *((kind, True) for kind in ("teacher", "objective", "projector", "transforms")),
    ],
)
def test_fault_56_every_component_of_a_file_is_checked(
    kind: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: Any = {"adapter": "policy", "transforms": "transform"}.get(kind, kind)
    entry = Entry(registered, "anything", Anything, "tests")
    monkeypatch.setattr(default_registry(), "entries", [*default_registry().entries, entry])
    value = [RUN] if kind in ("transforms", "schedule") else RUN
    holder = (lambda config: config["pairs"][0]) if inside else (lambda config: config)
    folder = edit(saved(tmp_path, "risky"), lambda config: holder(config).update({kind: value}))
    plain = policy()
    given: dict[str, Any] = {} if kind == "adapter" else {"adapter": TinyAdapter(plain)}
    with pytest.raises(TrustError, match=r"asks for \w+ 'anything' with run=True"):
        SpatialForcing.from_pretrained(plain, folder, **given)
    assert MADE == []
    assert SpatialForcing.of(plain) is None


def test_fault_56_components_inside_components_are_checked(tmp_path: Path) -> None:
    loose, cosine = {"name": "loose", "options": {"run": 1}}, {"name": "cosine", "options": {}}
    terms = [{"objective": item, "weight": 1.0} for item in (cosine, loose)]
    objective = {"name": "sum", "options": {"terms": terms}}
    folder = edit(saved(tmp_path, "risky"), lambda config: config.update(objective=objective))
    with pytest.raises(TrustError, match="objective 'sum' with terms="):
        load(folder)
    terms.pop()
    edit(folder, lambda config: config.update(objective=objective))
    assert load(folder).config.objective.name == "sum"


def test_what_the_caller_replaces_is_not_asked_for(tmp_path: Path) -> None:
    folder = saved(tmp_path, ("risky", {"run_code": True}))
    handle = load(folder, pairs=[(2, ("risky", {"run_code": True}))])
    assert handle.runners[0].teacher.options.run_code


def test_options_of_an_unknown_component_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'riski', and nothing in .* has that name\. Did you mean 'risky'"):
        load(saved(tmp_path, "risky"), options={"riski": {"dim": 3}})


# ------------------------------------------------------------------------------------------------ what is published


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "alice"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("named", [False, True])
def test_fault_57_no_local_path_is_published(named: bool, alice: Path, tmp_path: Path) -> None:
    path = str(alice / "model.safetensors")
    folder = saved(tmp_path / "run", f"named:{path}" if named else ("risky", {"weights": path}))
    digest = digest_of(path)
    for file in (folder / "spatial_forcing").iterdir():
        assert b"alice" not in file.read_bytes(), file.name
    teacher = config_of(folder)["config"]["pairs"][0]["teacher"]
    others = {"dim": 12, "grid": None, "joint": False, "label": "", "run_code": False}
    in_name = {"name": f"named:sha256:{digest}", "options": others}
    assert teacher == (in_name if named else {"name": "risky", "options": {**others, "weights": {"sha256": digest}}})
    assert f"sha256:{digest}" in config_of(folder)["teachers"][0]["weights"]
    assert f"sha256:{digest}" in (folder / "spatial_forcing" / "README.md").read_text()


def test_fault_57_a_saved_digest_is_asked_for_and_verified(alice: Path, tmp_path: Path) -> None:
    path = alice / "model.safetensors"
    folder = saved(tmp_path / "run", ("risky", {"weights": str(path)}))
    with pytest.raises(TrustError, match="weights lay on the machine that saved it") as caught:
        load(folder)
    assert as_printed(caught.value) == {"risky": {"weights": "/path/to/it"}}
    moved = shutil.copy(path, tmp_path / "moved.safetensors")
    assert load(folder, options={"risky": {"weights": str(moved)}}).runners[0].teacher.options.weights == str(moved)
    (tmp_path / "moved.safetensors").write_bytes(b"others")
    with pytest.raises(TrustError, match=r"is not what .* was trained with"):
        load(folder, options={"risky": {"weights": str(moved)}})


def test_fault_57_texts_about_a_teacher_name_no_local_path(alice: Path) -> None:
    teacher = Risky({"weights": str(alice)})
    assert "alice" not in public_text("teacher", teacher.spec, f"weights={alice}, from {teacher.identity['weights']}")
    assert public_text("teacher", teacher.spec, "3D points / offsets") == "3D points / offsets"


def test_fault_57_two_local_folders_have_two_digests(alice: Path, tmp_path: Path) -> None:
    other = tmp_path / "home" / "bob"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other weights")
    plain = policy()
    pairs = [(1, f"named:{alice}"), (2, f"named:{other}")]
    SpatialForcing.wrap(plain, pairs=pairs, adapter=TinyAdapter(plain))
    plain.spatial_forcing.save(tmp_path / "run")  # type: ignore[attr-defined]
    names = [pair["teacher"]["name"] for pair in config_of(tmp_path / "run")["config"]["pairs"]]
    given = [{"weights": str(alice)}, {"weights": str(other)}]
    again = load(tmp_path / "run", options=dict(zip(names, given, strict=True)))
    assert [host.teacher.name for host in again.runners] == [name for _, name in pairs]
    with pytest.raises(TrustError, match=r"is not what .* was trained with"):
        load(tmp_path / "run", options=dict(zip(names, reversed(given), strict=True)))


def test_a_path_that_is_gone_is_published_as_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, "named:/home/alice/gone")
    assert config_of(folder)["config"]["pairs"][0]["teacher"]["name"] == "named:sha256:unknown"
    assert "alice" not in (folder / "spatial_forcing" / "README.md").read_text()
    load(folder, options={"named:sha256:unknown": {"weights": "/home/alice/gone"}})
    assert any("could not be compared" in record.getMessage() for record in caplog.records)


def test_a_digest_that_cannot_be_compared_is_logged(
    alice: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path / "run", ("risky", {"weights": str(alice / "model.safetensors")}))
    load(folder, options={"risky": {"weights": "owner/model"}})
    assert any("could not be compared" in record.getMessage() for record in caplog.records)


def test_a_folders_digest_is_that_of_its_models_and_settings(alice: Path) -> None:
    first = digest_of(str(alice))
    (alice / "README.md").write_text("changed")
    assert digest_of(str(alice)) == first
    (alice / "config.json").write_text("{}")
    assert digest_of(str(alice)) != first
    assert digest_of(str(alice / "none")) is None


def test_fault_57_a_ranking_names_no_local_path(alice: Path, tmp_path: Path) -> None:
    tools = pytest.importorskip("sfkit_tools")
    from sfkit.testing.tiny import tiny_batch

    plain = policy()
    ranking = tools.rank_layers(
        plain, tiny_batch(b=8), f"named:{alice / 'model.safetensors'}", adapter=TinyAdapter(plain), resamples=20
    )
    assert ranking.teacher == f"named:sha256:{digest_of(str(alice / 'model.safetensors'))}@3"
    drawn = io.StringIO()
    tools.chart(ranking).savefig(drawn, format="svg")
    assert "alice" not in drawn.getvalue()


def test_repositories_are_published_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, ("risky", {"weights": "owner/model"}))
    assert config_of(folder)["config"]["pairs"][0]["teacher"]["options"]["weights"] == "owner/model"


# ---------------------------------------------------------------------------------------------- without bounds


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, "[]", "1", '"x"', "\x00"])
def test_fault_59_a_hostile_config_is_an_error_of_ours(text: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "risky")
    (folder / "spatial_forcing" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="could not be read"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "projector.safetensors", "README.md"])
def test_fault_59_files_have_a_largest_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "risky")
    file = folder / "spatial_forcing" / name
    monkeypatch.setitem(hub.LIMITS, f"spatial_forcing/{name}", file.stat().st_size)
    load(folder)
    monkeypatch.setitem(hub.LIMITS, f"spatial_forcing/{name}", file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{name} has .* bytes, and sfkit reads"):
        load(folder)


def test_fault_59_sizes_are_asked_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Info:
        path, size = "spatial_forcing/projector.safetensors", 2**40

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("it was fetched")

    monkeypatch.setattr(huggingface_hub.HfApi, "get_paths_info", lambda *args, **options: [Info])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes"):
        load("somebody/run")


def test_fault_59_three_named_files_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def fetch(*args: Any, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(saved(tmp_path, "risky"))

    monkeypatch.setattr(huggingface_hub.HfApi, "get_paths_info", lambda *args, **options: [])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load("somebody/run")
    names = ("config.json", "projector.safetensors", "README.md")
    assert asked == [[f"spatial_forcing/{name}" for name in names]]


def test_a_hostile_calibration_file_is_an_error_of_ours(tmp_path: Path) -> None:
    from sfkit.views.cameras import CameraRig

    (tmp_path / "cameras.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="Cannot read camera calibration"):
        CameraRig.load(tmp_path / "cameras.json")


def test_local_pca_components_are_published_by_digest(tmp_path: Path) -> None:
    file = tmp_path / "components.safetensors"
    save_file({"mean": torch.zeros(12), "components": torch.zeros(4, 12)}, file)
    folder = saved(tmp_path / "run", "risky", transforms=[("pca", {"dim": 4, "file": str(file)})])
    found = [item for item in config_of(folder)["config"]["transforms"] if item["name"] == "pca"]
    assert found == [{"name": "pca", "options": {"dim": 4, "file": {"sha256": digest_of(str(file))}}}]
