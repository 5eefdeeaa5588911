"""Presets: what each stands for, what overrides it, and where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.cli import main
from sfkit.config import ComponentSpec, Options, SpatialForcingConfig
from sfkit.errors import ConfigError, SfkitWarning, UnknownNameError
from sfkit.factory import resolve
from sfkit.presets import Preset
from sfkit.projectors.standard import nested_widths
from sfkit.registry.component import AnyOptions
from sfkit.registry.registry import CORE, Entry, default_registry
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]
NAMES = ("haste", "irepa", "irepa-latent", "repa", "rocket", "spatial-forcing-openvla", "spatial-forcing-pi0", "vega")


class Stand(PatchTeacher):
    """In the place of a teacher with weights: its name and number of layers."""

    def __init__(self, name: str = "vggt", layers: int = 24, options: AnyOptions = None) -> None:
        super().__init__(options)
        self.name, self._layers = name, layers

    @property
    def num_layers(self) -> int:
        return self._layers


class NoOptionsAdapter(TinyAdapter):
    """Has no token_shift."""

    name = "plain"
    Options = Options


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters of the tiny policy, known by name."""
    here = [Entry("policy", "tiny", TinyAdapter, "tests"), Entry("policy", "plain", NoOptionsAdapter, "tests")]
    here.append(Entry("teacher", "patch", PatchTeacher, "tests"))
    monkeypatch.setattr(default_registry(), "entries", [*default_registry().entries, *here])


def wrap(tiny: Make, preset: Any, blocks: int = 3, **arguments: Any) -> Any:
    return SpatialForcing.wrap(tiny(num_layers=blocks), preset=preset, **{"adapter": "tiny", **arguments})


MLP = ComponentSpec(name="mlp", options={"hidden": None, "norm": True})


def config(policy: Any) -> SpatialForcingConfig:
    found: SpatialForcingConfig = policy.spatial_forcing.config
    return found


def options(components: tuple[ComponentSpec, ...]) -> list[tuple[str, dict[str, Any]]]:
    return [(item.name, dict(item.options)) for item in components]


# ------------------------------------------------------------------------------------------ what they stand for


def test_spatial_forcing_for_pi0(tiny: Make) -> None:
    found = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand()))
    (pair,) = found.pairs
    assert (pair.student_layer, pair.teacher.name, pair.teacher_layer) == (12, "vggt", 24)
    assert (found.weight, found.objective.name, found.projector) == (0.5, "cosine", MLP)
    assert not found.schedule or found.schedule[0].name == "constant"
    assert options(found.transforms) == [
        ("position-code", {"ratio": 0.1, "scale": "absolute"}),
        ("resample", {"align_corners": True, "scale_factor": True}),
    ]
    assert found.adapter.options == {"token_shift": 0}


def test_fault_16_the_openvla_preset_shifts_tokens(tiny: Make) -> None:
    found = config(wrap(tiny, "spatial-forcing-openvla", 32, teacher=Stand()))
    other = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand()))
    assert found.pairs[0].student_layer == 24
    assert found.adapter.options == {"token_shift": 1}
    same = {"adapter": other.adapter, "pairs": other.pairs}
    assert found.model_copy(update=same) == other


@pytest.mark.parametrize(
    ("blocks", "layers", "shift"),
    [(32, [2, 4, 6, 8, 10, 12, 14, 16, 18, 31], {"token_shift": 1}), (18, [2, 3, 4, 5, 6, 7, 8, 9, 10, 18], {})],
)
def test_fault_35_rockets_pairs_are_layers_that_mean_one_thing(
    tiny: Make, blocks: int, layers: list[int], shift: dict[str, int]
) -> None:
    policy = wrap(tiny, "rocket", blocks, teacher=Stand(), projector=("nested", {"hidden": 40}))
    found = config(policy)
    assert [pair.student_layer for pair in found.pairs] == layers
    assert [pair.teacher_layer for pair in found.pairs] == [3, 5, 7, 9, 11, 13, 15, 17, 19, 24]
    assert {pair.weight for pair in found.pairs} == {1.0}
    assert (found.pair_reduction, found.shared_projector, found.weight) == ("mean", True, 0.5)
    assert found.adapter.options == {"token_shift": 0, **shift}
    assert len(policy.spatial_forcing.runners) == 1, "the teacher runs once"
    policy(tiny_batch())[0].backward()
    assert policy.spatial_forcing.runners[0].num_forwards == 1


def test_rockets_widths_are_the_released_ones(tiny: Make) -> None:
    found = config(wrap(tiny, "rocket", 18, teacher=Stand()))
    assert found.projector.name == "nested"
    widths = nested_widths(len(found.pairs), found.projector.options["hidden"])
    assert widths == (409, 591, 773, 955, 1137, 1319, 1501, 1683, 1865, 2048)


@pytest.mark.parametrize(
    ("name", "projector", "transforms", "weight", "schedule"),
    [
        ("repa", "mlp-silu", [], 0.5, []),
        ("irepa", "conv", ["resample", "spatial-norm"], 0.5, []),
        ("irepa-latent", "conv", ["resample", "spatial-norm"], 1.0, []),
    ],
)
def test_repa_and_its_kin(
    tiny: Make, name: str, projector: str, transforms: list[str], weight: float, schedule: list[Any]
) -> None:
    teacher = Stand("hf:facebook/dinov2-base", 12)
    found = config(wrap(tiny, name, 12, teacher=teacher))
    assert (found.pairs[0].student_layer, found.pairs[0].teacher_layer, found.weight) == (8, 12, weight)
    assert found.projector.name == projector
    assert [item.name for item in found.transforms] == transforms
    assert [item for item in options(found.schedule) if item[0] != "constant"] == schedule
    assert default_registry().get("preset", name).load().arguments["teacher"] == teacher.name


@pytest.mark.parametrize(("name", "kernel", "gamma"), [("irepa", 3, 0.8), ("irepa-latent", 1, 0.6)])
def test_irepa_is_one_released_configuration(tiny: Make, name: str, kernel: int, gamma: float) -> None:
    pair = wrap(tiny, name, 12, teacher=Stand("hf:facebook/dinov2-base", 12)).spatial_forcing.pairs[0]
    assert pair.projector.conv.kernel_size == (kernel, kernel)
    assert [item.options.gamma for item in pair.transforms if item.name == "spatial-norm"] == [gamma]


def test_vega_taps_the_vision_tower_and_needs_a_teacher(tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"'vega' names no teacher\.\n.*FiT3D"):
        wrap(tiny, "vega")
    found = config(wrap(tiny, "vega", teacher=PatchTeacher()))
    assert (found.pairs[0].student_layer, found.weight, found.projector.name) == ("encoder", 0.1, "mlp")


def test_haste_has_repas_term_and_one_on_attention(tiny: Make) -> None:
    teacher = Stand("hf:facebook/dinov2-base", 12)
    policy = wrap(tiny, "haste", 12, teacher=teacher, projector="linear")
    found = config(policy)
    assert [(p.student_layer, p.teacher_layer, p.weight, p.objective and p.objective.name) for p in found.pairs] == [
        (8, 12, 1.0, None), *((block, block + 4, 0.25, "attention") for block in (5, 6, 7, 8)),
    ]  # fmt: skip
    assert (found.weight, found.objective.name, found.pair_reduction) == (0.5, "cosine", "sum")
    assert options(found.schedule) == [("stop", {"at": 250_000})]
    preset = default_registry().get("preset", "haste").load()
    assert (preset.arguments["teacher"], preset.arguments["projector"][0]) == (teacher.name, "mlp-silu")
    policy(tiny_batch())[0].backward()
    assert policy.spatial_forcing.runners[0].num_forwards == 1, "features and attention come from one run"


def test_hastes_stop_frees_the_teacher(tiny: Make) -> None:
    pairs = [(2, PatchTeacher()), {"student_layer": 1, "teacher": PatchTeacher(), "objective": "attention"}]
    policy = wrap(tiny, "haste", pairs=pairs, schedule="stop:2")
    losses = [policy(tiny_batch(seed=step))[1] for step in range(4)]
    assert ["sf_loss" in logs for logs in losses] == [True, True, False, False]
    assert policy.spatial_forcing.runners[0].num_forwards == 2


@pytest.mark.filterwarnings("ignore:sfkit. the position code")
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains_a_policy_that_it_fits(tiny: Make, name: str) -> None:
    policy = wrap(tiny, name, 32, teacher=Stand() if name in ("rocket", "spatial-forcing-openvla") else Stand(name))
    before = [value.detach().clone() for value in policy.spatial_forcing.pairs.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    loss, logs = policy(tiny_batch())
    loss.backward()
    optimizer.step()
    assert 0 < logs["sf_loss"] < 3
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.spatial_forcing.pairs.parameters(), strict=True))


# --------------------------------------------------------------------------------------------- what overrides it


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"weight": 0.0}, "weight", 0.0),
        ({"weight": "balance:0.1"}, "weight", "balance:0.1"),
        ({"objective": "mse"}, "objective", ComponentSpec(name="mse", options={"normalize": "layer"})),
        ({"projector": "linear"}, "projector", ComponentSpec(name="linear", options={"norm": False, "bias": True})),
        ({"transforms": []}, "transforms", ()),
        (
            {"schedule": "cosine:10"},
            "schedule",
            (ComponentSpec(name="cosine", options={"steps": 10, "delay": 0, "to": 0.0}),),
        ),
        ({"pair_reduction": "mean"}, "pair_reduction", "mean"),
        ({"shared_projector": True}, "shared_projector", True),
    ],
)
def test_any_field_goes_before_the_presets(tiny: Make, given: dict[str, Any], field: str, value: Any) -> None:
    plain = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand()))
    found = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand(), **given))
    assert getattr(found, field) == value != getattr(plain, field)
    assert found.model_copy(update={field: getattr(plain, field)}) == plain, "nothing else changes"


MINE = Preset(
    name="mine",
    source="here",
    arguments={
        "teacher": ("patch", {"dim": 8, "grid": 6}),
        "student_layer": 1,
        "objective": ("info-nce", {"temperature": 0.2}),
        "projector": ("nested", {"hidden": 16, "smallest": 0.5}),
        "transforms": (("position-code", {"ratio": 0.2, "scale": "absolute"}), ("resample", {"align_corners": True})),
        "schedule": ("cosine", {"steps": 100, "to": 0.25}),
        "adapter": {"token_shift": 1},
    },
)


@pytest.mark.parametrize(
    ("given", "where", "wanted", "said"),
    [
        ({"teacher": ("patch", {"joint": True})}, "teacher", {"dim": 8, "grid": 6, "joint": True}, ""),
        ({"teacher": {"name": "patch", "grid": 4}}, "teacher", {"dim": 8, "grid": 4}, "grid=6 (yours: 4)"),
        ({"teacher": "patch"}, "teacher", {"dim": 8, "grid": 6}, ""),
        ({"objective": ("info-nce", {})}, "objective", {"temperature": 0.2}, ""),
        ({"projector": ("nested", {"norm": False})}, "projector", {"hidden": 16, "smallest": 0.5, "norm": False}, ""),
        ({"projector": ("nested", {"hidden": 20})}, "projector", {"hidden": 20, "smallest": 0.5},
         "hidden=16 (yours: 20)"),
        ({"schedule": "cosine:50"}, "schedule", {"steps": 50, "to": 0.25}, "steps=100 (yours: 50)"),
        ({"schedule": ["constant", ("cosine", {})]}, "schedule", {"steps": 100, "to": 0.25}, ""),
        ({"transforms": [("position-code", {"ratio": 0.3})]}, "transforms", {"ratio": 0.3, "scale": "absolute"},
         "ratio=0.2 (yours: 0.3)"),
        ({"adapter": ("tiny", {"token_shift": 0})}, "adapter", {"token_shift": 0}, "token_shift=1 (yours: 0)"),
    ],
)  # fmt: skip
def test_fault_82_a_component_keeps_the_presets_options(
    tiny: Make,
    caplog: pytest.LogCaptureFixture,
    given: dict[str, Any],
    where: str,
    wanted: dict[str, Any],
    said: str,
) -> None:
    handle = wrap(tiny, MINE, **given).spatial_forcing
    pair = handle.pairs[0]
    found = {
        "teacher": [handle.teachers[0]],
        "objective": [pair.objective],
        "projector": [pair.projector],
        "transforms": [item for item in pair.transforms if item.name == "position-code"],
        "schedule": [item for item in handle.weighting.schedule if item.name == "cosine"],
        "adapter": [handle.adapter],
    }
    (component,) = found[where]
    assert {key: getattr(component.options, key) for key in wanted} == wanted
    lines = [line for line in caplog.messages if "overrides options of preset 'mine'" in line]
    assert [line.partition("'mine': ")[2] for line in lines] == ([said] if said else [])


def test_fault_82_pairs_keep_the_presets_options_too(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [
        (1, ("patch", {"joint": True})),
        {"student_layer": 2, "teacher": ("patch", {"grid": 4}), "projector": ("nested", {"share": 0.5})},
    ]
    found = config(wrap(tiny, MINE, pairs=pairs, projector="linear")).pairs
    assert [pair.teacher.options for pair in found] == [
        {"dim": 8, "grid": 6, "joint": True}, {"dim": 8, "grid": 4, "joint": False},
    ]  # fmt: skip
    assert found[1].projector is not None
    assert found[1].projector.options == {"hidden": 16, "smallest": 0.5, "share": 0.5, "norm": True}
    assert "grid=6 (yours: 4)" in caplog.text


def test_fault_82_an_instance_is_kept_and_what_it_lacks_said(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    teacher = PatchTeacher({"dim": 8})
    handle = wrap(tiny, MINE, teacher=teacher).spatial_forcing
    assert handle.teachers == [teacher]
    assert "your teacher 'patch' overrides options of preset 'mine': grid=6 (yours: None)" in caplog.text


def test_fault_82_other_components_take_no_options_along(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {"teacher": "geometry", "projector": "mlp", "transforms": [], "schedule": "constant"}
    handle = wrap(tiny, MINE, **given).spatial_forcing
    assert (handle.teachers[0].changed_options, handle.pairs[0].projector.changed_options) == ({}, {})
    assert "overrides options" not in caplog.text
    # A teacher's argument says which it is: options of one model are not those of another.
    of_a_model = MINE.model_copy(update={"arguments": {**MINE.arguments, "teacher": ("patch:a", {"dim": 8})}})
    assert with_options_of(of_a_model, "patch:a") == {"dim": 8}
    assert with_options_of(of_a_model, "patch:b") == {}


def with_options_of(preset: Preset, teacher: str) -> dict[str, Any]:
    recipe = {"teacher": preset.arguments["teacher"]}
    return dict(resolve._with_options_of(preset, recipe, {"teacher": teacher})["teacher"].options)


def test_explicit_layers_and_pairs_override_the_presets(tiny: Make) -> None:
    pair = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand(), student_layer=3, teacher_layer=5)).pairs[0]
    assert (pair.student_layer, pair.teacher_layer) == (3, 5)
    pairs = [(1, Stand(), 2), (2, Stand(), 4)]
    found = config(wrap(tiny, "rocket", pairs=pairs))
    assert [(pair.student_layer, pair.teacher_layer) for pair in found.pairs] == [(1, 2), (2, 4)]
    assert (found.projector.name, found.pair_reduction) == ("nested", "mean")


def test_the_users_adapter_options_go_before_the_presets(tiny: Make) -> None:
    policy = wrap(tiny, "spatial-forcing-openvla", 32, teacher=Stand(), adapter=("tiny", {"token_shift": 0}))
    assert policy.spatial_forcing.adapter.options.token_shift == 0
    plain = tiny(num_layers=32)
    with pytest.warns(SfkitWarning, match="token_shift=1, and you gave an adapter without it"):
        SpatialForcing.wrap(plain, Stand(), preset="spatial-forcing-openvla", adapter=TinyAdapter(plain))
    assert plain.spatial_forcing.adapter.options.token_shift == 0
    plain = tiny(num_layers=32)
    SpatialForcing.wrap(
        plain, Stand(), preset="spatial-forcing-openvla", adapter=TinyAdapter(plain, {"token_shift": 1})
    )


def test_without_a_preset_the_defaults_are_what_they_were(tiny: Make) -> None:
    plain = tiny()
    found = config(SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain)))
    for name in ("objective", "transforms", "weight", "shared_projector", "pair_reduction"):
        assert getattr(found, name) == SpatialForcingConfig.model_fields[name].default
    assert found.projector == MLP
    assert found.adapter.options == {"token_shift": 0}


# ------------------------------------------------------------------------------------------ where they do not fit


@pytest.mark.parametrize(
    ("preset", "blocks", "arguments", "says"),
    [
        ("spatial-forcing-pi0", 3, {"teacher": Stand()}, r"aligns layer 12; TinyPolicy has 3\.\n.*student_layer="),
        ("repa", 6, {"teacher": Stand()}, r"aligns layer 8; TinyPolicy has 6"),
        ("rocket", 12, {"teacher": Stand()}, r"policies of 32 or 18 blocks; TinyPolicy has 12\.\n.*pairs="),
        ("rocket", 18, {"teacher": Stand(), "student_layer": 3}, "has pairs, so student_layer says nothing"),
        ("rocket", 18, {"teacher": Stand("vggt", 12)}, "Teacher layer 13 is out of range"),
        (
            "spatial-forcing-openvla",
            32,
            {"teacher": Stand(), "adapter": "plain"},
            "token_shift=1, which adapter 'plain'",
        ),
        ("spatial-forcing-pi0", 18, {"teacher": Stand(), "pairs": [(1, Stand())]}, "Give either pairs or teacher"),
    ],
)
def test_what_does_not_fit_is_said(tiny: Make, preset: str, blocks: int, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrap(tiny, preset, blocks, **arguments)


def test_an_unknown_preset_lists_the_known_ones(tiny: Make) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown preset 'rockt'.*Did you mean 'rocket'"):
        wrap(tiny, "rockt")


def test_fault_33_an_absolute_code_warns_of_another_teacher(tiny: Make, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(
        SfkitWarning, match=r"has the size that suits 'vggt'; beside 'patch' it may be all of the target"
    ):
        found = config(wrap(tiny, "spatial-forcing-pi0", 18, teacher=PatchTeacher()))
    assert found.pairs[0].teacher_layer == 3, "its own default"
    relative = [("position-code", {"ratio": 0.1, "scale": "relative"})]
    wrap(tiny, "spatial-forcing-pi0", 18, teacher=PatchTeacher(), transforms=relative)
    with pytest.warns(SfkitWarning, match="the size that suits 'vggt'"):  # the scale is still the preset's
        wrap(tiny, "spatial-forcing-pi0", 18, teacher=PatchTeacher(), transforms=["position-code"])
    wrap(tiny, "spatial-forcing-pi0", 18, teacher=Stand("vggt-commercial"))
    wrap(tiny, "repa", 18, teacher=PatchTeacher())
    assert not recwarn.list


# ----------------------------------------------------------------------------------------------- saved, listed


def test_a_run_of_a_preset_is_saved_and_resumed_without_it(tiny: Make, tmp_path: Path) -> None:
    policy = wrap(tiny, "spatial-forcing-openvla", 32, teacher="geometry", teacher_layer=1, transforms=["layer-norm"])
    policy(tiny_batch())[0].backward()
    policy.spatial_forcing.save(tmp_path)
    again = SpatialForcing.from_pretrained(tiny(num_layers=32), tmp_path)
    assert config(again) == config(policy)
    assert again.spatial_forcing.adapter.options.token_shift == 1
    assert again.spatial_forcing.steps == policy.spatial_forcing.steps == 1
    losses = [one(tiny_batch(seed=1))[1]["sf_loss"] for one in (policy, again)]
    assert losses[0] == losses[1]


def test_a_preset_of_ones_own(tiny: Make) -> None:
    mine = Preset(
        name="mine",
        source="here",
        arguments={"teacher": "geometry", "student_layer": 1, "weight": 0.125},
    )
    found = config(wrap(tiny, mine))
    assert (found.pairs[0].student_layer, found.pairs[0].teacher.name, found.weight) == (1, "geometry", 0.125)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_presets_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert run("presets", "haste") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "stop(at=250000)" in printed
    assert "Not reproduced: - policies with fewer than twelve heads" in printed
    assert "student_layer=5, teacher_layer=9, objective=attention, weight=0.25" in printed
    assert run("presets", "rocky") == 1
    assert "Did you mean 'rocket'" in capsys.readouterr().err


def test_the_registry_says_of_each_preset_what_it_says_itself() -> None:
    entries = {entry.name: entry for entry in default_registry().of_kind("preset") if entry.distribution == CORE}
    assert {*entries} == {*NAMES}
    for name, entry in entries.items():
        preset = entry.load()
        assert isinstance(preset, Preset)
        assert preset.name == name
        assert preset.released
        assert preset.missing
