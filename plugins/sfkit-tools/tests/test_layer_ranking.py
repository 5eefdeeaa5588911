"""Layers of a policy in which it is known where the images, and their depth, can be read."""

from __future__ import annotations

import copy
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sfkit_tools import Measure, Ranking, chart, rank_layers
from torch import Tensor, nn

from sfkit import GenericAdapter, Span
from sfkit.cli import main
from sfkit.errors import AdapterError, ConfigError
from sfkit.testing.tiny import PatchTeacher


class Scramble(nn.Module):
    """A block that leaves nothing in its stream that could be read linearly, or (``gently``) all of it."""

    def __init__(self, dim: int, *, gently: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim)
        self.gently = gently

    def forward(self, hidden: Tensor) -> Tensor:
        update = self.mix(self.input_layernorm(hidden))
        return hidden + 1e-3 * update if self.gently else (300 * self.mix(hidden)).sin()


class Scrambling(nn.Module):
    """Images can be read from the embeddings and after the first block, and no more after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(Scramble(16, gently=gently) for gently in (True, False, True))
        self.drop = nn.Dropout(0.5)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.drop(self.embed(batch["images"].flatten(0, 1)).flatten(2).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.square().mean()


def batch_of(samples: int = 12) -> dict[str, Tensor]:
    """Images of patches of one color, as far away as they are bright."""
    colors = torch.rand(samples, 1, 3, 4, 4)
    images = colors.repeat_interleave(8, 3).repeat_interleave(8, 4)
    return {"images": images, "depth": 1 + images.mean(2)}


OPTIONS: dict[str, Any] = {
    "blocks": "blocks", "tokens": Span(0, 16), "grid": (1, 4, 4), "images": "images", "pixels": "[0,1]",
}  # fmt: skip
WITH_DEPTH = {**OPTIONS, "depth": "depth", "depth_unit": "m"}


@pytest.fixture
def ranked() -> Ranking:
    torch.manual_seed(0)
    return rank_layers(Scrambling(), batch_of(), PatchTeacher(), adapter=GenericAdapter(**WITH_DEPTH), teacher_layer=2)


def test_the_layers_where_the_images_can_be_read_come_first(ranked: Ranking) -> None:
    assert [rank.student_layer for rank in ranked.layers] == [0, 1, 2]
    assert ranked.teacher == "patch@2"
    assert (ranked.samples, ranked.tokens) == (12, 12 * 16)
    clear, same, scrambled = (rank.cka for rank in ranked.layers)
    assert clear.value == pytest.approx(same.value, abs=0.01)
    assert clear.value > 0.3 > scrambled.value + 0.1
    # The first two hardly differ, and the third is clearly better.
    assert set(ranked.rivals()) <= {0, 1}
    assert ranked.best() in (0, 1)
    assert clear.best + same.best == 1.0
    assert all(m.low <= m.value <= m.high for m in (clear, scrambled))


def test_depth_is_read_where_it_can_be(ranked: Ranking) -> None:
    values = [rank.probe.value for rank in ranked.layers if rank.probe is not None]
    assert values[0] > 0.95
    assert values[1] > 0.95
    assert values[2] < 0.3
    assert 2 not in ranked.rivals("probe")


def test_depth_of_other_images_cannot_be_read() -> None:
    torch.manual_seed(0)
    batch = batch_of()
    batch["depth"] = batch["depth"].roll(1, 0)
    found = rank_layers(Scrambling(), batch, PatchTeacher(), adapter=GenericAdapter(**WITH_DEPTH))
    assert all(rank.probe is not None and rank.probe.value < 0.1 for rank in found.layers)


def test_few_samples_leave_more_doubt() -> None:
    def spread(samples: int) -> float:
        torch.manual_seed(0)
        found = rank_layers(Scrambling(), batch_of(samples), PatchTeacher(), adapter=GenericAdapter(**OPTIONS))
        assert all(rank.probe is None for rank in found.layers)
        return found.layers[0].cka.high - found.layers[0].cka.low

    assert spread(4) > 1.3 * spread(24)


def test_nothing_is_left_behind_and_the_same_is_found_again() -> None:
    policy, batch = Scrambling().train(), batch_of()
    policy.drop.eval()
    before, drawn = copy.deepcopy((dict(policy.state_dict()), batch)), torch.get_rng_state()
    first, second = (rank_layers(policy, batch, PatchTeacher(), adapter=GenericAdapter(**WITH_DEPTH)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.testing.assert_close((dict(policy.state_dict()), batch), before, rtol=0, atol=0)
    assert policy.training
    assert not policy.drop.training
    assert not any(module._forward_pre_hooks for module in policy.modules())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="holds 3 samples; resampling needs at least 4"):
        rank_layers(Scrambling(), batch_of(3), PatchTeacher(), adapter=GenericAdapter(**OPTIONS))
    with pytest.raises(AdapterError, match="No adapter handles"):
        rank_layers(Scrambling(), batch_of(), PatchTeacher())


def test_the_chart_shows_both_curves_and_their_bands(ranked: Ranking) -> None:
    (axes,) = chart(ranked).axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert list(curves) == ["CKA to patch@2", "depth probe, R²"]
    cka = curves["CKA to patch@2"]
    assert list(cka.get_xdata()) == [0, 1, 2]
    assert list(cka.get_ydata()) == [rank.cka.value for rank in ranked.layers]
    edges = axes.collections[0].get_datalim(axes.transData).intervaly
    assert edges[0] == pytest.approx(min(rank.cka.low for rank in ranked.layers))
    assert edges[1] == pytest.approx(max(rank.cka.high for rank in ranked.layers))


def test_the_chart_leaves_out_depth_that_is_not_known(ranked: Ranking) -> None:
    without = replace(ranked, layers=tuple(replace(rank, probe=None) for rank in ranked.layers))
    assert [line.get_label() for line in chart(without).axes[0].get_lines()] == ["CKA to patch@2"]


def test_a_hopeless_depth_does_not_flatten_the_chart(ranked: Ranking) -> None:
    hopeless = Measure(-40.0, -50.0, -30.0, 0.0, False)
    layers = (*ranked.layers[:-1], replace(ranked.layers[-1], probe=hopeless))
    assert chart(replace(ranked, layers=layers)).axes[0].get_ylim() == (-1.0, 1.0)


def test_the_chart_belongs_to_no_window(ranked: Ranking) -> None:
    chart(ranked)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ranked_policy.py").write_text(
        "import torch\n"
        "from sfkit import GenericAdapter, Span\n"
        "from sfkit.testing.tiny import TinyPolicy, tiny_batch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    adapter = GenericAdapter(blocks='blocks', tokens=Span(0, 32), grid=(2, 4, 4), images='images',\n"
        "                             pixels='[0,1]', depth='depth', depth_unit='m', intrinsics='intrinsics')\n"
        "    return TinyPolicy(), tiny_batch(b=4), adapter\n"
    )
    image = tmp_path / "layers.svg"
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["--teacher", "geometry", "--count", "2", "--resamples", "20", "--plot", str(image)]
    with pytest.raises(SystemExit) as ended:
        main(["rank-layers", f"{tmp_path / 'ranked_policy.py'}:make", *arguments])
    assert not ended.value.code
    printed = capsys.readouterr().out
    for line in ("CKA to geometry@1", "depth probe, R²", "Best by CKA: student layer", "2 layers, end-anchored: 2, 3"):
        assert line in printed
    assert ET.parse(image).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_an_unknown_format_is_an_error_before_the_policy_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unranked.py").write_text("def make():\n    return None\n")
    with pytest.raises(SystemExit) as ended:
        main(["rank-layers", f"{tmp_path / 'unranked.py'}:make", "--teacher", "geometry", "--plot", "layers.bmp.x"])
    assert ended.value.code == 1
    assert "End it with one of" in capsys.readouterr().err
