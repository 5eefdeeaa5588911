from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sfkit_demo.arms import ArmError, _portable, _receive, _Running, run_jobs
from sfkit_demo.options import parse_weight
from sfkit_demo.run import ArmResult
from sfkit_demo.settings import Arm, Job, Settings
from sfkit_demo.train import batches, learning_rate

from sfkit.cli import main
from sfkit.errors import ConfigError
from sfkit.teachers.geometry import GeometryTeacher


def silent(_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def demo_run(run_demo: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``sfkit demo`` of its own policy and teacher."""
    options = ("--steps", "4", "--teacher-options", "position_mean=true, bands=2")
    return run_demo(tmp_path_factory.mktemp("demo"), *options)


@pytest.fixture
def both(demo_run: Any) -> dict[str, ArmResult]:
    return demo_run.arms


def test_the_first_step_of_both_arms_is_the_same(both: dict[str, ArmResult]) -> None:
    plain, aligned = both["plain"].curves, both["aligned"].curves
    assert plain.action_loss[0] == aligned.action_loss[0]
    assert plain.action_loss[1:] != aligned.action_loss[1:]


def test_both_arms_drew_the_same_random_numbers(both: dict[str, ArmResult]) -> None:
    assert both["plain"].curves.random_state == both["aligned"].curves.random_state != ""


def test_every_figure_is_there_and_plausible(both: dict[str, ArmResult]) -> None:
    for result in both.values():
        metrics, mean = result.metrics, result.mean
        assert 0 < metrics.flow_loss < 10
        assert 0 < metrics.object_cm < 3 * mean.object_cm
        assert set(metrics.depth_r2) == {"corner2", "wrist"}
        assert -1 <= mean.cosine <= metrics.cosine <= 1
        assert all(0 < error < 50 for error in metrics.depth_rmse_cm.values())
    assert both["plain"].mean.object_cm == both["aligned"].mean.object_cm
    assert both["plain"].mean.cosine == both["aligned"].mean.cosine
    assert both["plain"].untrained is not None
    assert both["plain"].curves.cosine == []
    assert len(both["aligned"].curves.cosine) == 4
    assert [report.step for report in both["aligned"].curves.health] == [0, 1, 2, 3]
    assert all(report.ratio > 0 for report in both["aligned"].curves.health)
    assert both["plain"].parameters == both["aligned"].parameters


def test_batches_depend_on_the_seed_alone_and_cover_an_epoch() -> None:
    rows, settings = torch.arange(100, 164), Settings(Path(), steps=8, batch_size=16, seed=3)
    first, again = list(batches(rows, settings)), list(batches(rows, settings))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sorted(torch.cat(first[:4]).tolist()) == rows.tolist()
    other = list(batches(rows, replace(settings, seed=4)))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("steps", [1, 4, 800])
def test_the_learning_rate_rises_and_falls(steps: int) -> None:
    rates = [learning_rate(step, Settings(Path(), steps=steps)) for step in range(steps)]
    assert max(rates) == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in rates)
    assert steps < 10 or rates[-1] < 0.02


def test_a_failing_arm_ends_the_others_and_raises_its_error(settings: Settings, tmp_path: Path) -> None:
    jobs = [
        Job(Arm("broken"), replace(settings, data=tmp_path)),
        Job(Arm("long", GeometryTeacher()), replace(settings, steps=100_000)),
    ]
    with pytest.raises(ConfigError, match="no LeRobot dataset") as caught:
        list(run_jobs(jobs, 2, silent))
    assert caught.value.remedy
    assert not multiprocessing.active_children()


def test_the_death_of_a_process_is_noticed(settings: Settings) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    dead: Any = SimpleNamespace(join=lambda: None, exitcode=-9)
    with pytest.raises(ArmError, match="exit code -9") as caught:
        _receive(_Running(Job(Arm("plain"), settings), dead, receiver), silent)
    assert "--jobs 1" in caught.value.remedy


def test_other_errors_come_with_their_traceback() -> None:
    try:
        raise ZeroDivisionError("deep inside")
    except ZeroDivisionError as error:
        portable = _portable(error, "plain")
    assert isinstance(portable, ArmError)
    assert "deep inside" in str(portable)
    assert "test_demo_run.py" in str(portable)


def test_the_command_prints_the_table_and_where_the_report_is(demo_run: Any) -> None:
    assert demo_run.code == 0
    assert "SmolVLA from scratch, plain and aligned with geometry, bands=2, position_mean=True: 4 " in demo_run.printed
    for words in ("held-out action loss", "object position", "mean predictor", "seconds per step", "report.html"):
        assert words in demo_run.printed


def test_the_report_has_every_section(demo_run: Any) -> None:
    for heading in (
        "Everything that was measured",
        "What the tokens look like",
        "Loss curves",
        "Health of the alignment",
        "The same comparison over several seeds",
        "What these figures mean, and what they do not",
        "How it was made",
    ):
        assert f"<h2>{heading}</h2>" in demo_run.page
    assert "No precomputed seeds were found" in demo_run.page
    assert "bands=2, position_mean=True" in demo_run.page


def test_the_report_needs_no_network_and_has_no_hole(demo_run: Any) -> None:
    # One figure of curves, one of health, and six rows of five images.
    assert demo_run.page.count("data:image/png;base64,") == 2 + 6 * 5
    text = re.sub(r"data:image/png;base64,[^\"]*", "", demo_run.page)
    for trace in ("http:", "https:", 'src="//', "<script", "$", "nan", ">None<"):
        assert trace not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "pi5"], "Did you mean 'pi05'"),
        (["--policy", "resnet"], "Policies: smolvla, pi0, pi05"),
        (["--teacher", "geometri"], "Did you mean 'geometry'"),
        (["--teacher-options", "band=2"], "Did you mean 'bands'"),
        (["--teacher-options", "bands"], "key=value"),
        (["--teacher-options", "bands=x"], "bands"),
        (["--data", "nowhere"], "no dataset at nowhere"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert "Traceback" not in printed


def test_a_preset_and_an_objective_may_be_chosen(run_demo: Callable[..., Any], tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--steps", "2", "--preset", "irepa-latent", "--objective", "relational", stride=48)
    assert done.code == 0
    assert "weight 1 at student layer 4 of 6, preset irepa-latent, relational objective" in done.printed
    assert "preset irepa-latent, relational objective" in done.page


@pytest.mark.parametrize(
    ("preset", "weight", "wanted"),
    [(None, None, 0.5), ("irepa-latent", None, 1.0), ("irepa-latent", 0.25, 0.25), (None, 0.0, 0.0)],
)
def test_the_weight_is_the_users_or_the_presets(preset: str | None, weight: float | None, wanted: float) -> None:
    assert parse_weight(weight, preset) == wanted


@pytest.mark.parametrize("preset", ["haste", "rocket", "vega"])
def test_a_preset_that_the_demo_could_not_measure_is_refused(preset: str) -> None:
    with pytest.raises(ConfigError, match=f"preset '{preset}' aligns something else"):
        parse_weight(None, preset)
