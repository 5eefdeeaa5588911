"""Small policies: LeRobot's classes and preprocessors with random weights, about a million parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sfkit_demo.data import Batch, Frames
from sfkit_demo.settings import BLOCKS, Settings

Preprocess = Callable[[Batch], Batch]
#: Keyword arguments of the tiny policies of ``sfkit_lerobot.testing``.
Arguments: TypeAlias = Mapping[str, Any]
#: Statistics by feature, then by name.
Statistics: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"

_SIDE = 64


def build_policy(frames: Frames, train_rows: Tensor, settings: Settings, folder: Path) -> tuple[nn.Module, Preprocess]:
    """The policy, initialized from ``settings.seed``, and its preprocessor.

    An image of 64 pixels becomes 4 x 4 tokens; there are six blocks of width 96; all parameters train. Prompts are
    padded to the longest one of the dataset, since pi0.5's 200 tokens would take most of the time.

    Args:
        frames: The dataset.
        train_rows: Rows ``(n,)`` whose statistics normalize states and actions.
        settings: Policy, seed and chunk length.
        folder: Folder for the definition of SmolVLA's vision-language model.
    """
    channels, height, width = next(iter(frames.images.values())).shape[1:]
    arguments = {
        "cameras": tuple(frames.images),
        "image_shape": (channels, height, width),
        "state_dim": frames.state.shape[1],
        "action_dim": frames.action.shape[1],
        "chunk_size": settings.chunk,
    }
    stats = {
        "observation.state": _statistics(frames.state[train_rows]),
        "action": _statistics(frames.action[train_rows]),
    }
    texts = sorted(set(frames.tasks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        if settings.policy == "smolvla":
            return _smolvla(arguments, stats, texts, settings.seed, folder)
        return _pi0(settings.policy, arguments, stats, frames, settings.seed)


def _smolvla(
    arguments: Arguments, stats: Statistics, texts: list[str], seed: int, folder: Path
) -> tuple[nn.Module, Preprocess]:
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from sfkit_lerobot.testing import tiny_smolvla, tiny_smolvlm

    vlm = tiny_smolvlm(
        folder,
        vision_hidden=64, vision_layers=3, vision_heads=4, image_size=_SIDE, patch_size=8, scale_factor=2,
        hidden=96, layers=BLOCKS, heads=6, kv_heads=3, texts=texts,
    )  # fmt: skip
    torch.manual_seed(seed)
    policy = tiny_smolvla(vlm, **arguments)
    preprocess, _ = make_smolvla_pre_post_processors(policy.config, stats)
    return policy, preprocess


def _pi0(kind: str, arguments: Arguments, stats: Statistics, frames: Frames, seed: int) -> tuple[nn.Module, Preprocess]:
    """pi0 or pi0.5, with nearly the sizes of SmolVLA: their attention needs eight heads."""
    from sfkit_lerobot.testing import tiny_pi0, tiny_pi0_processors, tiny_pi05

    sizes = {
        "vision_hidden": 64, "vision_layers": 3, "vision_heads": 4, "patch_size": 16,
        "hidden": 96, "expert_hidden": 72, "layers": BLOCKS, "head_dim": 12,
    }  # fmt: skip
    torch.manual_seed(seed)
    build = {"pi0": tiny_pi0, "pi05": tiny_pi05}[kind]
    policy: Any = build(**arguments, sizes=sizes, image_resolution=(_SIDE, _SIDE))
    texts = sorted(set(frames.tasks))
    preprocess, _ = tiny_pi0_processors(policy, stats, texts)
    # pi0.5 writes the state into the prompt, so the longest prompt is found over all frames.
    prompts = preprocess({"observation.state": frames.state, "task": list(frames.tasks)})
    policy.config.tokenizer_max_length = int(prompts["observation.language.attention_mask"].sum(1).max())
    preprocess, _ = tiny_pi0_processors(policy, stats, texts)
    return policy, preprocess


def _statistics(values: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation (for SmolVLA and pi0) and quantiles (for pi0.5) of ``(n, d)``, each ``(d,)``."""
    q01, q99 = torch.quantile(values, torch.tensor([0.01, 0.99]), dim=0)
    return {"mean": values.mean(0), "std": values.std(0), "q01": q01, "q99": q99}
