"""The benchmarks run; what they measure in bytes is exact, so it is held to its bound here. Times are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
NAMES = ("disabled", "geometry", "alignment", "memory", "pairs-memory", "health", "imports", "openpi", "standins")
NAMES += ("lerobot-train", "vggt", "vggt-memory", "vggt-gpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sfkit_lerobot")
    folder = tmp_path_factory.mktemp("benchmarks")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_leaves_its_figures_with_their_conditions(results: Path, name: str) -> None:
    report = read(results, name)
    assert report["rows"]
    assert {"torch", "cores", "date", "load before"} <= report["conditions"].keys()
    assert f"## {report['title']}" in (results / "README.md").read_text()


def test_times_are_ratios_with_an_interval_that_holds_them(results: Path) -> None:
    for name in ("disabled", "geometry", "alignment", "imports"):
        for row in read(results, name)["rows"]:
            for clock in ("wall", "cpu"):
                ratio = row["data"][clock]
                assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]


def test_a_smoke_run_passes_no_judgment_on_times(results: Path) -> None:
    assert not any(
        row["verdict"]
        for name in ("disabled", "geometry", "alignment", "imports")
        for row in read(results, name)["rows"]
    )


def test_alignment_saves_at_most_three_times_the_tapped_tokens(results: Path) -> None:
    judged = [row for row in read(results, "memory")["rows"] if row["target"]]
    assert len(judged) == 2
    for row in judged:
        parts = row["data"]["bytes"]
        # Something was counted in every part, or the bound would hold for nothing.
        assert parts["saved by the alignment, its projector aside"] > 0
        assert (
            parts["saved in the projector, with the tokens given to it"] > parts["the tapped visual tokens in float32"]
        )
        assert parts["saved by the rest of the step, beyond plain"] == 0
        assert row["data"]["ratio"] <= 3


def test_alignment_keeps_at_most_three_copies_of_openpi_tokens(results: Path) -> None:
    judged = [row for row in read(results, "openpi")["rows"] if "tokens" in row["data"]]
    assert len(judged) == 2
    for row in judged:
        assert row["data"]["projector"] > row["data"]["alignment"] > row["data"]["tokens"], "each part was counted"
        assert row["data"]["policy"] == row["data"]["plain"]
        assert row["data"]["ratio"] <= 3


def test_ten_pairs_hold_what_their_products_hold_or_less(results: Path) -> None:
    rows = {row["what"]: row for row in read(results, "pairs-memory")["rows"]}
    assert [row["verdict"] for row in rows.values()] == ["met"] * 4 + [""] * 2
    assert rows["nothing made again: peak"]["data"]["ratio"] > 2, "or there was nothing to spare"


def test_the_cost_of_health_is_reported_for_both_kinds_of_step(results: Path) -> None:
    rows = read(results, "health")["rows"]
    for measured, spread in (rows[0:2], rows[2:4]):
        assert spread["data"]["wall"]["median"] == pytest.approx((measured["data"]["wall"]["median"] - 1) / 50)
    assert "between measurements" in rows[4]["what"]


def test_every_benchmark_is_explained() -> None:
    pytest.importorskip("sfkit_lerobot")
    main = pytest.importorskip("benchmarks.__main__")
    explained = (ROOT / "benchmarks" / "README.md").read_text()
    assert [name for name in (*main.BENCHMARKS, *main.FULL) if f"`{name}`" not in explained] == []
    assert set(NAMES) == set(main.BENCHMARKS)


def test_live_bytes_are_counted_while_something_refers_to_them() -> None:
    live = pytest.importorskip("benchmarks.live")
    x = torch.ones(1000, requires_grad=True)
    with live.Live([x]) as alive:
        doubled = x * 2
        view = doubled.view(10, 100)
        loss = (doubled * doubled).sum()  # the product is gone again, and its inputs are kept
        assert (alive.now, alive.peak) == (4004, 8004)
        del doubled, view
        assert alive.now == 4004
        loss.backward()
        assert alive.now == 4004, "now the gradient, and no more what was kept"
        del loss
        assert alive.now == 4000


def test_saved_bytes_are_counted_once_for_each_storage() -> None:
    memory = pytest.importorskip("benchmarks.memory")
    squares = torch.ones(5, 3, requires_grad=True)
    saved = memory.Saved(parameters=frozenset())
    with torch.autograd.graph.saved_tensors_hooks(saved.see, lambda tensor: tensor):
        doubled = squares * 2.0  # saves nothing
        saved.part = "other"
        (doubled * doubled[0]).sum()  # saves the same storage twice, once as a view
    assert saved.bytes == {"other": 5 * 3 * 4}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.99, 1.01, "met"), (0.99, 1.05, "not shown"), (1.001, 1.01, "missed"), (0.9, 0.99, "not shown")],
)
def test_disabled_is_met_only_by_a_narrow_interval_around_one(low: float, high: float, verdict: str) -> None:
    disabled = pytest.importorskip("benchmarks.disabled")
    pairs = pytest.importorskip("benchmarks.pairs")
    assert disabled.judge(pairs.Ratio((low + high) / 2, low, high)) == verdict


def test_the_interval_of_a_constant_ratio_is_that_ratio() -> None:
    pairs = pytest.importorskip("benchmarks.pairs")
    assert pairs.median_with_interval(np.full(9, 1.5)) == pairs.Ratio(1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("side", "views", "wanted"), [(518, 1, 3.05), (518, 2, 6.47), (518, 3, 10.26), (224, 2, 1.00), (294, 3, 2.72)]
)
def test_operations_of_vggt_are_those_of_the_published_network(side: int, views: int, wanted: float) -> None:
    gpu = pytest.importorskip("benchmarks.vggt_gpu")
    assert gpu.flops(gpu.FULL, 1, views, side) / 1e12 == pytest.approx(wanted, abs=0.006)
