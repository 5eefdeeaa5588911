"""A tiny SmolVLA trained by LeRobot's own command, in this process, on the shipped dataset."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

os.environ.setdefault("HF_HUB_OFFLINE", "1")

DATA = Path(__file__).parents[3] / "plugins" / "sfkit-demo" / "src" / "sfkit_demo" / "recording"


@dataclass
class Run:
    """What a run did.

    Attributes:
        curve: The figures of each window of the log, in full precision.
        teacher_runs: How often teachers ran.
        policy: The policy as the trainer had it.
        optimizer: Its optimizer.
        eval_losses: Losses on held-out episodes.
        warnings: What it warned of.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    teacher_runs: int = 0
    policy: Any = None
    optimizer: Any = None
    eval_losses: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the dataset is not beside these tests")
    return DATA


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sfkit_lerobot.testing import tiny_smolvlm

        return tiny_smolvlm(tmp_path_factory.mktemp("smolvlm"), texts=("reach the goal",))


@pytest.fixture(scope="session")
def shape(vlm: Path) -> list[str]:
    """Flags that make SmolVLA tiny and trainable."""
    return [
        f"--policy.vlm_model_name={vlm}",
        "--policy.load_vlm_weights=false",
        "--policy.num_vlm_layers=4",
        "--policy.resize_imgs_with_padding=[64,64]",
        "--policy.train_expert_only=false",
        "--policy.freeze_vision_encoder=false",
        "--policy.chunk_size=8",
        "--policy.n_action_steps=8",
    ]


@pytest.fixture(scope="session")
def common(data: Path) -> list[str]:
    """Flags of every run: two samples a step, everything logged, nothing sent anywhere."""
    return [
        "--dataset.repo_id=local/metaworld-mini",
        f"--dataset.root={data}",
        "--dataset.video_backend=pyav",
        "--dataset.episodes=[0,1,2,3]",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--batch_size=2",
        "--num_workers=0",
        "--log_freq=1",
        "--env_eval_freq=0",
        "--wandb.enable=false",
    ]


@pytest.fixture(scope="session")
def aligned() -> list[str]:
    """Flags of spatial forcing."""
    return ["--policy.type=sf_smolvla", "--policy.sf.teacher=geometry", "--policy.sf.student_layer=2"]


@pytest.fixture(scope="session")
def lerobot_train() -> Callable[..., Run]:
    """``lerobot_train(*flags)``: LeRobot's command, in this process, which is left as it was.

    With ``config=`` its function ``train`` is called, as by a program that has no such flags.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn of optional packages
        from lerobot.scripts import lerobot_train as module

    def run(*flags: str, config: Any = None) -> Run:
        result = Run()
        with (
            _as_a_program(["lerobot-train" if config is None else "program.py", *flags]),
            _watched(module, result),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            module.main() if config is None else module.train(config)
        result.warnings = [str(item.message) for item in caught if "sfkit" in str(item.message)]
        return result

    return run


@contextlib.contextmanager
def _as_a_program(argv: list[str]) -> Iterator[None]:
    root, before = logging.getLogger(), sys.argv
    level = root.level
    sys.argv = argv
    _forget_accelerate()
    try:
        yield
    finally:
        sys.argv = before
        root.setLevel(level)
        _forget_accelerate()


def _forget_accelerate() -> None:
    """Its state belongs to the process: the precision of whoever used it before would be that of this run."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@contextlib.contextmanager
def _watched(module: Any, result: Run) -> Iterator[None]:
    from sfkit.training.teacher_runner import TeacherRunner

    patch = pytest.MonkeyPatch()
    make, reset, features = (
        module.make_optimizer_and_scheduler,
        module.MetricsTracker.reset_averages,
        TeacherRunner.features,
    )

    def made(cfg: Any, policy: Any) -> Any:
        built = make(cfg, policy)
        result.policy, result.optimizer = policy, built[0]
        return built

    def noted(tracker: Any) -> None:
        result.curve.append(tracker.to_dict())
        reset(tracker)

    def counted(*args: Any, **kwargs: Any) -> Any:
        result.teacher_runs += 1
        return features(*args, **kwargs)

    def said(message: Any, *args: Any) -> None:
        found = re.search(r"eval_loss=([\d.]+)", str(message))
        result.eval_losses += [float(found[1])] if found else []

    # LeRobot's own handlers would take the place of pytest's.
    patch.setattr(module, "init_logging", lambda **_: None)
    patch.setattr(module.logging, "info", said)
    patch.setattr(module, "make_optimizer_and_scheduler", made)
    patch.setattr(module.MetricsTracker, "reset_averages", noted)
    patch.setattr(TeacherRunner, "features", counted)
    try:
        yield
    finally:
        patch.undo()


@pytest.fixture(scope="session")
def trained(
    lerobot_train: Callable[..., Run],
    common: list[str],
    shape: list[str],
    aligned: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Path]:
    """A run of six steps, saved after three and after six, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return lerobot_train(*common, *shape, *aligned, "--steps=6", "--save_freq=3", f"--output_dir={folder}"), folder


@pytest.fixture(scope="session")
def plain(trained: tuple[Run, Path]) -> Path:
    """A checkpoint of plain LeRobot: the policy's files, and nothing of sfkit."""
    _, folder = trained
    target = folder.parent / "plain"
    source = folder / "checkpoints" / "000003" / "pretrained_model"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("spatial_forcing", "train_config.json"))
    return target


@pytest.fixture(scope="session")
def opened(data: Path) -> Any:
    """The dataset, open."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/metaworld-mini", root=data, video_backend="pyav")


@pytest.fixture(scope="session")
def meta(opened: Any) -> Any:
    """LeRobot's metadata of the dataset."""
    return opened.meta


class OpenDataset(Dataset[Any]):
    """Stands for an open dataset of which there is only the metadata."""

    depth_output_unit, image_transforms = "mm", None

    def __init__(self, meta: Any) -> None:
        self.meta, self.root = meta, meta.root


@pytest.fixture
def make(opened: Any) -> Callable[..., Any]:
    """``make(type, sf={...}, **fields)``: a policy as LeRobot's factory makes it while the dataset is open.

    ``dataset`` is the metadata of another dataset, which is open too.
    """
    from lerobot.policies.factory import make_policy
    from lerobot_policy_spatial_forcing import CONFIGS, SpatialForcingOptions

    def make(kind: str, sf: dict[str, Any] | None = None, dataset: Any = None, **fields: Any) -> Any:
        block = SpatialForcingOptions(**{"teacher": "geometry", "student_layer": 2, **(sf or {})})
        config = CONFIGS[kind](sf=block, device="cpu", push_to_hub=False, **fields)
        local = opened if dataset is None else OpenDataset(dataset)
        return make_policy(config, ds_meta=local.meta)

    return make


@pytest.fixture
def tiny_pi(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``tiny_pi("pi0")``: a checkpoint of a tiny pi0 or pi0.5; both are built tiny as long as the test runs."""
    from sfkit_lerobot.testing import tiny_pi0, tiny_pi0_sizes, tiny_pi05

    def build(kind: str) -> Path:
        cameras = ("observation.images.corner2", "observation.images.wrist")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy = {"pi0": tiny_pi0, "pi05": tiny_pi05}[kind](cameras=cameras, image_shape=(3, 96, 96))
            policy.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    with tiny_pi0_sizes():
        yield build


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small tokenizer where the Hub's cache would keep PaliGemma's, whose name LeRobot's processors have in them."""
    from sfkit_lerobot.testing.tokenizer import byte_tokenizer

    numbers = " ".join(str(number) for number in range(256))
    folder = tmp_path / "hub" / "models--google--paligemma-3b-pt-224"
    snapshot = folder / "snapshots" / "0123abcd"
    byte_tokenizer(["reach the goal", f"Task: , State: {numbers};\nAction: "]).save_pretrained(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "paligemma"}')
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def resume(lerobot_train: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """``resume(checkpoint, *flags)``: go on from a copy of a checkpoint."""

    def resume(checkpoint: Path, *flags: str) -> Run:
        copy = tmp_path / "resumed" / "checkpoints" / checkpoint.name
        if not copy.exists():
            shutil.copytree(checkpoint, copy)
        config = copy / "pretrained_model" / "train_config.json"
        return lerobot_train(f"--config_path={config}", "--resume=true", f"--output_dir={tmp_path / 'resumed'}", *flags)

    return resume
