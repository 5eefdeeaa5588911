"""A type ``sf_*`` for each of LeRobot's policies: trained, saved, resumed, and loaded by plain LeRobot."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lerobot_policy_spatial_forcing import CONFIGS
from safetensors.torch import load_file
from sfkit_lerobot.support import POLICIES, WITHOUT

CAMERAS = ("observation.images.corner2", "observation.images.wrist")
_SEEN = ("loss", "action_loss", "sf_loss", "sf_cosine", "grad_norm", "lr")
#: Trained elsewhere: SmolVLA in test_train.py, pi0 and pi0.5 in test_train_pi.py.
ELSEWHERE = {"smolvla", "pi0", "pi05"}


ALIGNED = sorted(entry["name"] for entry in POLICIES.values())


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``base_of(kind)``: the local "repository" that a tiny policy is built around; made once."""
    from sfkit_lerobot import testing as tiny

    made: dict[str, Path] = {}

    def base_of(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            writers: dict[str, Callable[[Path], Any]] = {
                "qwen": tiny.tiny_qwen3vl,
                "groot": lambda folder: tiny.tiny_groot_base(folder, base_of("qwen")),
                "evo1": lambda folder: tiny.tiny_internvl(folder, texts=("reach the goal",)),
                "wall_x": tiny.tiny_wall_x_base,
                "molmoact2": tiny.tiny_molmoact2_base,
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what transformers deprecates
                writers.get(kind, lambda _: None)(folder)
            made[kind] = folder
        return made[kind]

    return base_of


@pytest.fixture
def started(
    base_of: Callable[[str], Path], meta: Any, tmp_path: Path, tokenizer: None
) -> Iterator[Callable[[str], Path]]:
    """``started(kind)``: a plain checkpoint of a tiny policy, with its processors; tiny as long as the test runs."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.groot import processor_groot
    from lerobot.processor import tokenizer_processor
    from sfkit_lerobot import testing as tiny
    from sfkit_lerobot.testing.fast import offline_tokenizers

    shape = {"cameras": CAMERAS, "image_shape": (3, 96, 96)}
    builders: dict[str, Callable[[], Any]] = {
        "act": lambda: tiny.tiny_act(**shape),
        "diffusion": lambda: tiny.tiny_diffusion(**shape),
        "pi0_fast": lambda: tiny.tiny_pi0_fast(**shape),
        "groot": lambda: tiny.tiny_groot(base_of("groot"), **shape),
        "xvla": lambda: tiny.tiny_xvla(base_of("xvla"), **shape),
        "evo1": lambda: tiny.tiny_evo1(base_of("evo1"), **shape),
        "wall_x": lambda: tiny.tiny_wall_x(base_of("wall_x"), **shape),
        "vla_jepa": lambda: tiny.tiny_vla_jepa(base_of("qwen"), **shape),
    }

    def start(kind: str) -> Path:
        folder = tmp_path / f"tiny-{kind}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            policy = builders[kind]()
            policy.save_pretrained(folder)
            for processor in make_pre_post_processors(policy.config, dataset_stats=meta.stats):
                processor.save_pretrained(folder)
        return folder

    with (
        tiny.tiny_pi0_sizes(),
        offline_tokenizers(tokenizer_processor),
        mock.patch.object(processor_groot, "GROOT_N1_7_BACKBONE_MODEL", str(base_of("qwen"))),
    ):
        yield start


def test_every_type_of_lerobot_has_its_counterpart() -> None:
    from lerobot.configs import PreTrainedConfig

    known = set(PreTrainedConfig.get_known_choices())
    plain = {kind for kind in known if not kind.startswith("sf_")}
    assert {f"sf_{kind}" for kind in plain} == set(CONFIGS) <= known
    assert {*ALIGNED, *(kind for kind, _, _ in WITHOUT)} == plain


@pytest.mark.parametrize("kind", [kind for kind in ALIGNED if kind not in (*ELSEWHERE, "molmoact2")])
def test_each_type_trains_aligned_resumes_and_loads(kind, lerobot_train, common, resume, started, tmp_path) -> None:
    folder = tmp_path / "run"
    flags = [f"--policy.type=sf_{kind}", f"--policy.pretrained_path={started(kind)}", "--policy.sf.teacher=geometry"]
    run = lerobot_train(*common, *flags, "--steps=3", "--save_freq=2", f"--output_dir={folder}")
    _require_aligned(run, 3)

    resumed = resume(folder / "checkpoints" / "000002")
    (before,), (after,) = run.curve[2:], resumed.curve
    assert {key: after[key] for key in _SEEN} == pytest.approx({key: before[key] for key in _SEEN}, rel=1e-5)
    _require_aligned(resumed, 1)
    assert resumed.policy.spatial_forcing.steps == 3
    _require_plain(folder / "checkpoints" / "last" / "pretrained_model", kind)


def test_molmoact2_trains_aligned_and_lerobot_itself_cannot_resume_it(
    lerobot_train, common, resume, base_of, tmp_path
) -> None:
    """The trainer of 0.6.1 asks every saved preprocessor for a ``normalizer_processor``, and MolmoAct2's has none."""
    base = base_of("molmoact2")
    shape = [
        f"--policy.checkpoint_path={base}", f"--policy.discrete_action_tokenizer={base / 'actions'}",
        "--policy.inference_action_mode=continuous", "--policy.chunk_size=8", "--policy.n_action_steps=8",
        "--policy.num_flow_timesteps=2", "--policy.max_sequence_length=512", "--policy.model_dtype=float32",
    ]  # fmt: skip
    for kind, block in (("sf_molmoact2", ["--policy.sf.teacher=geometry"]), ("molmoact2", [])):
        folder = tmp_path / kind
        flags = [f"--policy.type={kind}", *shape, *block, "--steps=2", "--save_freq=1", f"--output_dir={folder}"]
        run = lerobot_train(*common, *flags)
        if block:
            _require_aligned(run, 2)
        _require_plain(folder / "checkpoints" / "last" / "pretrained_model", "molmoact2")
        config = folder / "checkpoints" / "000001" / "pretrained_model" / "train_config.json"
        with pytest.raises(KeyError, match=r"\['normalizer_processor'\] do not match any step"):
            lerobot_train(f"--config_path={config}", "--resume=true")


def _require_aligned(run: Any, steps: int) -> None:
    """Each step was one of alignment, whose gradient reaches the policy and whose projector the optimizer moves."""
    status = run.policy.spatial_forcing.status()
    assert status.teacher_runs == run.teacher_runs == len(run.curve) == steps
    assert status.reaches_policy is True
    assert status.metrics["sf_valid_token_fraction"] > 0
    known = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in run.policy.spatial_forcing.pairs.parameters()} <= known
    assert run.warnings == []
    for window in run.curve:
        assert window["sf_loss"] > 0
        total = window["action_loss"] + window["sf_effective_weight"] * window["sf_loss"]
        assert window["loss"] == pytest.approx(total, rel=1e-4)


def _require_plain(model: Path, kind: str) -> None:
    """The checkpoint is one of the plain policy, which loads every weight of it."""
    from lerobot.policies.factory import get_policy_class

    assert json.loads((model / "config.json").read_text())["type"] == kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = get_policy_class(kind).from_pretrained(model, strict=True)
    assert type(policy).__module__.startswith("lerobot.")
    stored, state = load_file(model / "model.safetensors"), policy.state_dict()
    assert set(stored) <= set(state)
    assert not [key for key in stored if "spatial_forcing" in key]
    assert all(torch.equal(state[key], value) for key, value in stored.items())
