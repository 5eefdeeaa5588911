"""Batches and calibration for tiny policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfkit.views.cameras import Camera, CameraRig
from sfkit_lerobot.normalization import visual_mode

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.pretrained import PreTrainedPolicy

_TEXT_LENGTH = 6
_MEAN, _STD = 0.5, 0.25


def tiny_lerobot_batch(
    policy: PreTrainedPolicy,
    *,
    batch_size: int = 2,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    missing: Sequence[str] = (),
    geometry: bool = False,
) -> dict[str, Tensor]:
    """A random batch as the policy's preprocessor would hand it over, to Diffusion with its observation steps.

    Args:
        policy: A tiny policy.
        batch_size: Samples.
        seed: Of the batch; the global random state is left alone.
        image_size: Height and width of the images; those of the policy's features by default.
        missing: Cameras to leave out.
        geometry: Add ``"<camera>_depth"`` ``(b, 1, h, w)`` in meters, as :func:`tiny_rig` describes it, and ``index``.
    """
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    batch = {}
    samples = (batch_size, config.n_obs_steps) if hasattr(config, "horizon") else (batch_size,)
    for key, feature in config.image_features.items():
        if key in missing or "empty_camera" in key:
            continue
        h, w = image_size or tuple(feature.shape[1:])
        batch[key] = _as_the_policy_wants(torch.rand(*samples, 3, h, w, generator=generator), config)
        if geometry:
            batch[f"{key}_depth"] = 0.4 + torch.rand(*samples, 1, h, w, generator=generator)
    state, action = config.robot_state_feature.shape[0], config.action_feature.shape[0]
    batch["observation.state"] = torch.randn(*samples, state, generator=generator)
    chunk = getattr(config, "chunk_size", None) or config.horizon
    batch["action"] = torch.randn(batch_size, chunk, action, generator=generator)
    batch["action_is_pad"] = torch.zeros(batch_size, chunk, dtype=torch.bool)
    tokens = torch.randint(20, 200, (batch_size, _TEXT_LENGTH), generator=generator)
    batch["observation.language.tokens"] = tokens
    batch["observation.language.attention_mask"] = torch.ones_like(tokens, dtype=torch.bool)
    words = getattr(config, "max_action_tokens", None)  # pi0-FAST's actions are words
    if words is not None:
        batch["action.tokens"] = torch.randint(20, 200, (batch_size, words), generator=generator)
        batch["action.token_mask"] = torch.arange(words).expand(batch_size, -1) < words - 2
    if geometry:
        batch["index"] = torch.arange(batch_size)
    return batch


def tiny_image_stats(policy: PreTrainedPolicy) -> dict[str, dict[str, tuple[float, ...]]]:
    """The statistics by which :func:`tiny_lerobot_batch` normalizes images, for policies that want them so."""
    return {key: {"mean": (_MEAN,) * 3, "std": (_STD,) * 3} for key in policy.config.image_features}


def _as_the_policy_wants(picture: Tensor, config: PreTrainedConfig) -> Tensor:
    """Images ``(b, 3, h, w)`` in [0, 1], normalized if the policy expects that."""
    return (picture - _MEAN) / _STD if visual_mode(config) == "MEAN_STD" else picture


def tiny_rig(policy: PreTrainedPolicy, image_size: tuple[int, int] | None = None) -> CameraRig:
    """Calibration for the batches of :func:`tiny_lerobot_batch`: 53 degrees wide, at rest at the origin, in meters."""
    cameras = {}
    for key, feature in policy.config.image_features.items():
        h, w = image_size or tuple(feature.shape[1:])
        cameras[key] = Camera(
            width=w,
            height=h,
            intrinsics=((float(w), 0.0, (w - 1) / 2), (0.0, float(w), (h - 1) / 2), (0.0, 0.0, 1.0)),
            depth_key=f"{key}_depth",
            depth_unit="m",
            world_from_camera=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        )
    return CameraRig(cameras)
