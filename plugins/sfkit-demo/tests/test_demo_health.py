"""The health section of the HTML report, of runs that were broken on purpose."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable
from html import unescape
from io import BytesIO
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import SfkitWarning
from sfkit.health.report import Health
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch
from sfkit.views.types import FeatureMap

plots = pytest.importorskip("sfkit_demo.plots_health", reason="the demo's plots are not installed")


class Constant(PatchTeacher):
    """One feature, everywhere and always."""

    name = "constant"

    def encode(self, model: Any, views: Any, layers: Any, grid: Any) -> list[FeatureMap]:
        found = super().encode(model, views, layers, grid)
        one = torch.randn(found[0].values.shape[-1], generator=torch.Generator().manual_seed(0))
        return [FeatureMap(one.expand(each.values.shape).clone(), each.mask) for each in found]


class Shifted(TinyAdapter):
    """The span of visual tokens begins one token early."""

    def visual_tokens(self, hidden: torch.Tensor, views: Any) -> FeatureMap:
        return super().visual_tokens(hidden.roll(1, 1), views)


def patchwork(seed: int) -> dict[str, torch.Tensor]:
    batch = tiny_batch(b=6, size=48, seed=seed)
    colors = torch.rand(6, 2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    batch["images"] = colors.repeat_interleave(8, 3).repeat_interleave(8, 4)
    return batch


def run(
    teacher: Any = None, adapter: type[TinyAdapter] = TinyAdapter, frozen: bool = False, **arguments: Any
) -> list[Health]:
    """What the monitor measured in a short run, as the demo gathers it."""
    torch.manual_seed(0)
    policy: Any = TinyPolicy()
    if frozen:
        for part in (policy.embed, *policy.blocks[:2], policy.state_proj):
            part.requires_grad_(False)
    SpatialForcing.wrap(
        policy, teacher or PatchTeacher(), student_layer=2, adapter=adapter(policy), health={"every": 2, "patience": 6},
        self_check=not frozen, **arguments,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], 1e-4)
    reports = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfkitWarning)
        for step in range(13):
            optimizer.zero_grad()
            policy(patchwork(step))[0].backward()
            optimizer.step()
            if step % 2 == 0:
                reports.append(policy.spatial_forcing.health())
    return reports


BROKEN: dict[str, tuple[Callable[[], list[Health]], str]] = {
    "frozen backbone": (lambda: run(frozen=True), "reaches no trainable parameter of the policy"),
    "weight 100": (lambda: run(weight=100.0), "The alignment gradient dominates"),
    "shifted tokens": (lambda: run(adapter=Shifted), "are spatially shifted"),
    "constant target": (lambda: run(Constant()), "is constant: all its tokens point the same way"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_report_of_a_broken_run_names_what_is_wrong(name: str) -> None:
    make, says = BROKEN[name]
    section = unescape(plots.health_section(make()))
    (warned,) = re.findall(r"<ul>(.*)</ul>", section, re.DOTALL)
    assert says in warned
    assert "There are no warnings" not in section


def test_the_figure_shows_every_measurement_of_a_healthy_run() -> None:
    reports = run()
    section = plots.health_section(reports)
    assert "There are no warnings." in section
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    from matplotlib.image import imread

    pixels = imread(BytesIO(base64.b64decode(image)), format="png")
    assert min(pixels.shape[:2]) > 200
    drawn = {title: {label: list(line) for label, line in lines.items()} for title, lines in
             plots._panels(reports).items()}  # fmt: skip
    assert drawn["Gradient ratio"][""] == [report.ratio for report in reports]
    assert drawn["Gradient cosine"][""] == [report.cosine for report in reports]
    assert drawn["Cosine to the target"].keys() == {"cam0", "cam1"}
    assert drawn["Drift of the tokens"]["drift"] == [report.layers[0].drift for report in reports]
    assert drawn["Effective rank"]["projected"] == [report.pairs[0].rank for report in reports]
    assert drawn["Mean norms"].keys() == {"tokens", "projected", "target"}
    assert drawn["Shares"]["projector moved"][-1] == reports[-1].projector_movement > 0
    assert drawn["Shares"]["tokens valid"] == [1.0] * len(reports)
