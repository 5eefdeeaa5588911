"""A small SmolVLA: LeRobot's own classes and preprocessor, random weights, about 1.3 million parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfkit_lerobot.demo.data import Frames
from sfkit_lerobot.demo.settings import Settings

Preprocess = Callable[[dict[str, Any]], dict[str, Any]]

_BLOCKS = 6


def build_policy(frames: Frames, train_rows: Tensor, settings: Settings, folder: Path) -> tuple[nn.Module, Preprocess]:
    """The policy, initialised from ``settings.seed``, and the preprocessor that its batches go through.

    64-pixel pictures become 4 x 4 tokens each; six blocks of width 96; everything that LeRobot lets be trained is.

    Args:
        frames: The dataset.
        train_rows: Rows whose statistics normalise states and actions.
        settings: Seed and chunk length.
        folder: Where the definition of the vision-language model is written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

        from sfkit_lerobot.tiny import tiny_smolvla, tiny_smolvlm

    vlm = tiny_smolvlm(
        folder,
        vision_hidden=64, vision_layers=3, vision_heads=4, image_size=64, patch_size=8, scale_factor=2,
        hidden=96, layers=_BLOCKS, heads=6, kv_heads=3, texts=sorted(set(frames.tasks)),
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    channels, height, width = next(iter(frames.images.values())).shape[1:]
    policy: nn.Module = tiny_smolvla(
        vlm,
        cameras=tuple(frames.images),
        image_shape=(channels, height, width),
        state_dim=frames.state.shape[1],
        action_dim=frames.action.shape[1],
        chunk_size=settings.chunk,
    )
    stats = {
        "observation.state": _moments(frames.state[train_rows]),
        "action": _moments(frames.action[train_rows]),
    }
    preprocess, _ = make_smolvla_pre_post_processors(policy.config, stats)
    return policy, preprocess


def _moments(values: Tensor) -> dict[str, Tensor]:
    return {"mean": values.mean(0), "std": values.std(0)}
