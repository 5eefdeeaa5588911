"""The vision tower's output, and future frames, of a policy that is described by paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sfkit import GenericAdapter, Span, SpatialForcing
from sfkit.errors import AdapterError, ConfigError, ShapeError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.testing.checks import check_correspondence
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

GIVEN: dict[str, Any] = {
    "blocks": "blocks", "tokens": Span(0, 32), "grid": (2, 4, 4), "images": "images", "pixels": "[0,1]", "loss": "0",
}  # fmt: skip
TOWER = {"connector": "connector", "tower": (4, 4, 16)}


def loss_of(adapter: Any, batch: dict[str, Any], per_view: bool = False, **arguments: Any) -> tuple[Any, float]:
    torch.manual_seed(0)
    policy = TinyPolicy(tower_per_view=per_view)
    if adapter is TinyAdapter:
        adapter = TinyAdapter(policy)
    SpatialForcing.wrap(policy, adapter=adapter, **arguments)
    policy(batch)[0].backward()
    return policy, policy.spatial_forcing.metrics()["sf_loss"]


@pytest.mark.parametrize("per_view", [False, True])
def test_a_connector_gives_the_tower_of_a_special_adapter(per_view: bool) -> None:
    arguments: dict[str, Any] = {"teacher": PatchTeacher(), "preset": "vega"}
    policy, found = loss_of(GenericAdapter(**GIVEN, **TOWER), tiny_batch(), per_view, **arguments)
    assert found == loss_of(TinyAdapter, tiny_batch(), per_view, **arguments)[1] > 0
    assert policy.spatial_forcing.status().reaches_policy


@pytest.mark.parametrize(
    ("family", "connector", "side"),
    [("paligemma", "multi_modal_projector", 4), ("llava", "multi_modal_projector", 4), ("smolvlm", "connector", 8)],
)
def test_the_tower_of_a_vlm_of_transformers_corresponds(
    make_vlm: Callable[..., Any], family: str, connector: str, side: int
) -> None:
    case = make_vlm(family, "left")
    found = case.adapter.options.model_copy(update={"connector": f"vlm.{connector}", "tower": (side, side, 24)})
    adapter = GenericAdapter(options=found)
    policy = SpatialForcing.wrap(case.policy.train(), PatchTeacher(), adapter=adapter, student_layer="encoder")
    check_correspondence(policy, case.batch(), case.perturb)


def test_future_paths_give_the_frames_of_a_special_adapter() -> None:
    frames = torch.rand(2, 3, 2, 3, 32, 32)
    pairs = [{"student_layer": 2, "teacher": PatchTeacher(), "future": 3}]
    _, wanted = loss_of(TinyAdapter, {**tiny_batch(), "future": frames}, pairs=pairs)
    adapter = GenericAdapter(**GIVEN, future={3: "next"}, future_present={3: "goes_on"})
    batch = {**tiny_batch(), "next": frames[:, 2], "goes_on": torch.ones(2, 2, dtype=torch.bool)}
    assert loss_of(adapter, batch, pairs=pairs)[1] == wanted
    # Past the end of the episode nothing is compared, whatever the image.
    batch["goes_on"][1] = False
    policy, once = loss_of(adapter, batch, pairs=pairs)
    batch["next"] = torch.stack([frames[0, 2], torch.zeros(2, 3, 32, 32)])
    assert loss_of(adapter, batch, pairs=pairs)[1] == once != wanted
    seen = policy.spatial_forcing.adapter.future_views(ForwardCall({"batch": batch}, None), 3)
    assert seen.present.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"connector": "connector"}, "connector and tower belong together"),
        ({"tower": (4, 4, 16)}, "connector and tower belong together"),
        ({"future": {3: "next"}, "future_present": {4: "goes_on"}}, "future_present names steps that future does not"),
    ],
)
def test_half_of_what_is_needed_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GenericAdapter(**GIVEN, **options)


def test_missing_and_wrong_options_are_explained() -> None:
    teacher = PatchTeacher()
    with pytest.raises(ConfigError, match=r"cannot read the vision tower's output\.\n.*connector="):
        loss_of(GenericAdapter(**GIVEN), tiny_batch(), teacher=teacher, student_layer="encoder")
    with pytest.raises(AdapterError, match=r"connector='conector': .*Did you mean 'connector'"):
        loss_of(
            GenericAdapter(**GIVEN, connector="conector", tower=(4, 4, 16)), tiny_batch(), teacher=teacher,
            student_layer="encoder",
        )  # fmt: skip
    with pytest.raises(ShapeError, match="expected 2 times"):
        loss_of(
            GenericAdapter(**GIVEN, connector="connector", tower=(2, 4, 16)), tiny_batch(), teacher=teacher,
            student_layer="encoder",
        )  # fmt: skip
    pairs = [{"student_layer": 2, "teacher": teacher, "future": 3}]
    with pytest.raises(ConfigError, match=r"has no images 3 steps ahead\.\n.*future=\{3:"):
        loss_of(GenericAdapter(**GIVEN), tiny_batch(), pairs=pairs)
    with pytest.raises(ViewsError, match="future='next' is not in the batch"):
        loss_of(GenericAdapter(**GIVEN, future={3: "next"}), tiny_batch(), pairs=pairs)


def test_it_is_saved_and_read_again() -> None:
    adapter = GenericAdapter(**GIVEN, **TOWER, future={3: "next"})
    saved = json.loads(json.dumps(adapter.spec.options))
    again = GenericAdapter(options=type(adapter.options).model_validate(saved))
    assert again.options == adapter.options
    assert (again.options.tower, again.options.future) == ((4, 4, 16), {3: "next"})
