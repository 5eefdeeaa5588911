"""Each tiny policy of LeRobot's own classes, aligned with geometry."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recording import Training

from sfkit import SpatialForcing


def tiny() -> Any:
    """What builds the policies; imported late, as it brings LeRobot, which the list of cases does not need."""
    from sfkit_lerobot import testing

    return testing


@functools.cache
def folder(name: str) -> Path:
    """A folder for what a policy is built around; it is gone when the process ends."""
    made = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def smolvla() -> Any:
    return tiny().tiny_smolvla(tiny().tiny_smolvlm(folder("smolvlm")))


def groot() -> Any:
    return tiny().tiny_groot(tiny().tiny_groot_base(folder("groot"), tiny().tiny_qwen3vl(folder("qwen"))))


def with_stats(policy: Any) -> Any:
    """Arguments of wrap for a policy whose images are normalized by the dataset's statistics."""
    return {"adapter": (policy.config.type, {"image_stats": tiny().tiny_image_stats(policy)})}


def tensors(make: Callable[[], Any], options: Callable[[Any], Any] = lambda policy: {}) -> Training:
    """A policy that is given random tensors."""
    policy = make()
    wrapped(policy, options(policy))
    return Training(
        policy, lambda step: policy.forward(tiny().tiny_lerobot_batch(policy, seed=step, geometry=True))[0]
    )  # fmt: skip


def frames(make: Callable[[], Any], processor: Callable[[Any], Any]) -> Training:
    """A policy that is given random frames of a dataset, through its own preprocessor."""
    policy = make()
    preprocess = processor(policy)
    wrapped(policy, {})

    def loss(step: int) -> torch.Tensor:
        batch, depth = random_frames(policy, step)
        return policy.forward({**preprocess(batch), **depth})[0]  # type: ignore[no-any-return]

    return Training(policy, loss)


def wrapped(policy: Any, options: dict[str, Any]) -> None:
    options = options if "pairs" in options else {"teacher": "geometry", **options}
    SpatialForcing.wrap(policy, cameras=tiny().tiny_rig(policy), **options)


def random_frames(policy: Any, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Frames as a dataset returns them, and depth in meters, which GR00T would take for images."""
    generator, config, found, depth = torch.Generator().manual_seed(seed), policy.config, {}, {}
    for key, feature in config.image_features.items():
        found[key] = torch.rand(2, 3, *feature.shape[1:], generator=generator)
        depth[f"{key}_depth"] = 0.4 + torch.rand(2, 1, *feature.shape[1:], generator=generator)
    state, action = config.robot_state_feature.shape[0], config.action_feature.shape[0]
    found["observation.state"] = torch.rand(2, state, generator=generator) - 0.5
    found["action"] = torch.rand(2, config.chunk_size, action, generator=generator) - 0.5
    tasks = ["push the block to the target", "pick up the red cube and place it in the bowl"]
    return {**found, "task": tasks, "index": torch.arange(2)}, depth


def _processor(kind: str) -> Callable[[Any], Any]:
    one = torch.ones(4)
    found = {"min": -one, "max": one, "mean": 0 * one, "std": one, "q01": -one, "q99": one}
    stats = dict.fromkeys(("observation.state", "action"), found)

    def make(policy: Any) -> Any:
        if kind == "groot":
            return tiny().tiny_groot_processors(policy, folder("qwen"), stats)[0]
        if kind == "xvla":
            return tiny().tiny_xvla_processors(policy, stats)[0]
        from lerobot.policies.factory import make_pre_post_processors

        return make_pre_post_processors(policy.config, dataset_stats=stats)[0]

    return make


FROM_FRAMES: dict[str, Callable[[], Any]] = {
    "groot": groot,
    "xvla": lambda: tiny().tiny_xvla(folder("tokenizer")),
    "evo1": lambda: tiny().tiny_evo1(tiny().tiny_internvl(folder("internvl"))),
    "wall_x": lambda: tiny().tiny_wall_x(tiny().tiny_wall_x_base(folder("wall_x"))),
    "vla_jepa": lambda: tiny().tiny_vla_jepa(tiny().tiny_qwen3vl(folder("qwen"))),
    "molmoact2": lambda: tiny().tiny_molmoact2(tiny().tiny_molmoact2_base(folder("molmoact2"))),
}

CASES: dict[str, Callable[[], Training]] = {
    "lerobot/smolvla": lambda: tensors(smolvla),
    "lerobot/smolvla pairs": lambda: tensors(
        smolvla, lambda policy: {"pairs": [(1, "geometry"), (2, "geometry", 1, 0.5), ("encoder", "geometry")]}
    ),
    "lerobot/smolvla balance": lambda: tensors(smolvla, lambda policy: {"weight": "balance:0.2"}),
    "lerobot/pi0": lambda: tensors(lambda: tiny().tiny_pi0()),
    "lerobot/pi05": lambda: tensors(lambda: tiny().tiny_pi05()),
    "lerobot/pi0_fast": lambda: tensors(lambda: tiny().tiny_pi0_fast()),
    "lerobot/act": lambda: tensors(lambda: tiny().tiny_act(), with_stats),
    "lerobot/diffusion": lambda: tensors(lambda: tiny().tiny_diffusion(), with_stats),
    **{
        f"lerobot/{kind}": lambda kind=kind, make=make: frames(make, _processor(kind))
        for kind, make in FROM_FRAMES.items()
    },
}
