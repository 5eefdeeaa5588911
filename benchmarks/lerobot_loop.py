"""Steps per second of ``lerobot-train``: ``sf_smolvla`` with the geometry teacher, against plain ``smolvla``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from sfkit_demo import RECORDING

from benchmarks.pairs import Pairs, Ratio, Seconds, interleave, median_with_interval
from benchmarks.policies import tiny_smolvlm_at_128, wide_smolvlm
from benchmarks.report import Report, Row

_LIMIT = 0.90
_RUN = "from lerobot.scripts.lerobot_train import main; main()"
_LINE = re.compile(r"\bstep:(\d+)\b.*\bupdt_s:([\d.]+)")
#: Plain LeRobot would take the depth maps for images, and fail on them.
_INPUTS = {
    "observation.images.corner2": {"type": "VISUAL", "shape": [3, 96, 96]},
    "observation.images.wrist": {"type": "VISUAL", "shape": [3, 96, 96]},
    "observation.state": {"type": "STATE", "shape": [4]},
}
#: Statistics taken from the first batch: what every step after the first 32 costs.
_TEACHER = '{"name": "geometry", "calibration_steps": 0}'


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        what: For the table.
        build: Writes the backbone's folder.
        side: Of a view, in pixels.
        blocks: Of the language model.
        batch: Samples of a step.
        window: Steps between two lines of the log. The first window is warm-up.
        pairs: Runs of each arm.
        threads: Of each run.
        judged: Whether the target is meant for this one.
    """

    what: str
    build: Callable[[Path], Path]
    side: int
    blocks: int
    batch: int
    window: int
    pairs: int
    threads: int
    judged: bool


def _models(quick: bool) -> list[Model]:
    tiny = Model("tiny, 128 px", tiny_smolvlm_at_128, 128, 4, 8, 2 if quick else 20, 1 if quick else 6, 1, judged=False)
    if quick:
        return [tiny]
    wide = Model(
        "SmolVLA-450M's widths", lambda folder: wide_smolvlm(folder, 512, 2, 4), 512, 4, 4, 3, 5, 2, judged=True
    )
    return [tiny, wide]


def steps(*, quick: bool) -> int:
    return sum(model.pairs for model in _models(quick))


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    models, rows = _models(quick), []
    for model in models:
        rows += _measure(model, advance)
    return Report(
        name="lerobot-train",
        title="Steps per second of lerobot-train with sf_smolvla and the geometry teacher, over plain smolvla",
        rows=rows,
        conditions={
            "loop": "from the first line of the log to the last, loading of data and logging included, start left out",
            "update": "LeRobot's own updt_s: forward, backward and optimizer alone",
            "data": "the recording of sfkit-demo, two cameras of 96 px, decoded in the training process",
            **{
                model.what: {
                    "batch size": model.batch, "view": f"{model.side} px", "text blocks": model.blocks,
                    "steps": 2 * model.window, "pairs": model.pairs, "threads": model.threads,
                }
                for model in models
            },
        },
    )  # fmt: skip


def _measure(model: Model, advance: Callable[[], None]) -> list[Row]:
    updates: dict[str, list[float]] = {"plain": [], "aligned": []}
    with TemporaryDirectory() as folder:
        vlm = model.build(Path(folder) / "vlm")

        def arm(name: str, flags: Sequence[str]) -> Callable[[], Seconds]:
            def train() -> Seconds:
                with TemporaryDirectory() as out:
                    loop, update = _train([*_flags(model, vlm), *flags, f"--output_dir={out}/run"], model)
                updates[name].append(update)
                return loop

            return train

        plain = arm("plain", ["--policy.type=smolvla"])
        aligned = arm("aligned", ["--policy.type=sf_smolvla", f"--policy.sf.teacher={_TEACHER}"])
        found = interleave(plain, aligned, pairs=model.pairs, warmup=0, seed=0, advance=advance)
    inverted = Pairs(base=found.other, other=found.base)  # steps per second: the inverse of the seconds of a step
    wall, cpu = inverted.ratio("wall"), inverted.ratio("cpu")
    seconds = {"plain": found.median_seconds("base", "wall"), "aligned": found.median_seconds("other", "wall")}
    target = {"target": f"at least {_LIMIT:.2f}", "verdict": _judge(wall)} if model.judged else {}
    figures = {"pairs": model.pairs, "wall": vars(wall), "cpu": vars(cpu), "median seconds of the loop": seconds}
    update = _ratio(updates["plain"], updates["aligned"])
    return [
        Row(f"{model.what}: loop", str(wall), cpu=str(cpu), data=figures, **target),
        Row(f"{model.what}: update", str(update), data={"wall": vars(update), "seconds": updates}),
    ]


def _ratio(plain: Sequence[float], aligned: Sequence[float]) -> Ratio:
    import numpy as np

    return median_with_interval(np.array(plain) / np.array(aligned))


def _judge(ratio: Ratio) -> str:
    if ratio.low >= _LIMIT:
        return "met"
    return "missed" if ratio.high < _LIMIT else "not shown"


def _flags(model: Model, vlm: Path) -> list[str]:
    return [
        "--dataset.repo_id=local/metaworld-mini", f"--dataset.root={RECORDING}", "--dataset.video_backend=pyav",
        f"--batch_size={model.batch}", f"--steps={3 * model.window}", f"--log_freq={model.window}", "--num_workers=0",
        "--env_eval_freq=0", "--save_checkpoint=false", "--policy.device=cpu", "--policy.push_to_hub=false",
        f"--policy.vlm_model_name={vlm}", "--policy.load_vlm_weights=false", f"--policy.num_vlm_layers={model.blocks}",
        f"--policy.resize_imgs_with_padding=[{model.side},{model.side}]", "--policy.train_expert_only=false",
        "--policy.freeze_vision_encoder=false", f"--policy.input_features={json.dumps(_INPUTS)}",
        "--policy.chunk_size=8", "--policy.n_action_steps=8",
    ]  # fmt: skip


def _train(flags: Sequence[str], model: Model) -> tuple[Seconds, float]:
    """Train in a process of its own; time from the first line of the log to the last, and the mean of ``updt_s``.

    Raises:
        RuntimeError: The run failed, or logged something else than was expected.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(model.threads), "HF_HUB_OFFLINE": "1"}
    marks: list[tuple[int, float, float, float]] = []
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, *flags],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        watched = psutil.Process(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if match := _LINE.search(line):
                used = watched.cpu_times()
                marks.append((int(match[1]), time.perf_counter(), used.user + used.system, float(match[2])))
    if process.returncode or [mark[0] for mark in marks] != [model.window, 2 * model.window, 3 * model.window]:
        raise RuntimeError(f"lerobot-train ended with {process.returncode}:\n{''.join(said[-30:])}")
    loop = Seconds(marks[-1][1] - marks[0][1], marks[-1][2] - marks[0][2])
    return loop, sum(mark[3] for mark in marks[1:]) / 2
