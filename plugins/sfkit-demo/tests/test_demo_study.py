from __future__ import annotations

import math
from pathlib import Path

import pytest
from sfkit_demo.evaluate import Metrics
from sfkit_demo.run import ArmResult
from sfkit_demo.settings import Settings
from sfkit_demo.study import CURVES, append_result, read_results, read_rows, spread
from sfkit_demo.train import Curves
from sfkit_demo.wording import Paired, live_sentence, paired_sentence

from sfkit.errors import ConfigError


def metrics(object_cm: float) -> Metrics:
    return Metrics(0.5, object_cm, 6.0, {"corner2": 0.9, "wrist": 0.8}, {"corner2": 4.0, "wrist": 5.0}, 0.9)


def result(arm: str, seed: int, object_cm: float) -> ArmResult:
    cosine = [] if arm == "plain" else [0.1 * i for i in range(40)]
    curves = Curves([2.0 - 0.01 * i for i in range(40)], cosine, [20, 40], [1.0, 0.9], [0.2] * 40, "abc")
    untrained = metrics(3.6) if arm == "plain" else None
    return ArmResult(arm, seed, metrics(object_cm), untrained, metrics(7.0), curves, 1000, (10, 5), None)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "results.csv"
    for seed in (0, 1, 2):
        for arm, error in (("plain", 4.0 + seed), ("geometry", 2.5 + 0.5 * seed)):
            append_result(path, result(arm, seed, error), Settings(Path(), steps=40, seed=seed))
    return path


def test_rows_come_back_as_numbers(study: Path) -> None:
    rows = read_results(study)
    assert [row["arm"] for row in rows] == ["untrained", "plain", "geometry"] * 3
    assert rows[1]["object_cm"] == 4.0
    assert rows[1]["steps"] == 40
    assert math.isnan(float(rows[0]["seconds_per_step"]))
    assert isinstance(rows[0]["torch"], str)
    curve = read_rows(study.with_name(CURVES))
    assert len(curve) == 6 * 20
    assert curve[0] == pytest.approx(
        {"seed": 0, "arm": "plain", "step": 2, "action_loss": 1.995, "cosine": math.nan}, nan_ok=True
    )


def test_spread_over_seeds(study: Path) -> None:
    found = spread(read_results(study), "plain", "object_cm")
    assert found.mean == 5
    assert found.deviation == 1
    assert found.values == {0: 4.0, 1: 5.0, 2: 6.0}
    assert math.isnan(spread(read_results(study), "nobody", "object_cm").mean)


def test_an_absent_file_has_no_rows_and_a_wrong_one_is_explained(tmp_path: Path, study: Path) -> None:
    assert read_results(tmp_path / "absent.csv") == []
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column arm, seed"):
        read_rows(other)
    other.write_text("seed,arm,steps\n1,plain,4\n")
    with pytest.raises(ConfigError, match="no column flow_loss"):
        read_results(other)
    text = study.read_text().splitlines()
    study.write_text("\n".join([*text, text[-1][:20]]))
    with pytest.raises(ConfigError, match="line 11"):
        read_results(study)


def test_rows_of_other_columns_are_not_mixed_in(study: Path) -> None:
    text = study.read_text()
    study.write_text(text.replace("goal_cm", "goal_mm", 1))
    with pytest.raises(ConfigError, match="other columns"):
        append_result(study, result("geometry", 3, 2.0), Settings(Path()))


def test_sentences_say_what_the_seeds_say(study: Path) -> None:
    paired = Paired.of(read_results(study), "plain", "geometry", "object_cm")
    assert paired.differences == (-1.5, -2.0, -2.5)
    sentence = paired_sentence("Object", paired, second="geometry", first="plain", unit="cm")
    assert "−2.00 cm on average" in sentence
    assert "lower in 3 of 3 seeds" in sentence
    assert "disagree" not in sentence
    mixed = paired_sentence("Loss", Paired((-1.0, 2.0)), second="b", first="a")
    assert "lower in 1 of 2 seeds" in mixed
    assert "do not settle it" in mixed
    assert "higher in 2 of 2" in paired_sentence("R²", Paired((0.1, 0.2)), second="b", first="a")
    assert "only seed" in paired_sentence("x", Paired((0.1,)), second="b", first="a")
    assert "no seed" in paired_sentence("x", Paired(), second="b", first="a")


def test_this_run_is_placed_among_the_seeds() -> None:
    paired = Paired((-1.0, -2.0))
    assert "within the range of the 2" in live_sentence("Difference", -1.5, paired, unit="cm")
    assert "outside" in live_sentence("Difference", 0.5, paired)
    assert live_sentence("Difference", -0.5, Paired()) == "Difference: −0.50 in this run."
