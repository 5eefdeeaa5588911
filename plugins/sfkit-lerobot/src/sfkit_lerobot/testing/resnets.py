"""ACT and Diffusion with a real ResNet-18, the smallest there is, and little else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, features

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

_SIDE = 128


def tiny_act(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, _SIDE, _SIDE),
    **overrides: object,
) -> PreTrainedPolicy:
    """An ``ACTPolicy`` with 4 x 4 tokens for each camera, on the CPU, in training mode.

    Args:
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``ACTConfig``, such as ``pre_norm=True``.
    """
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    settings: dict[str, object] = {
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "pretrained_backbone_weights": None,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 3,
        "n_vae_encoder_layers": 1,
        **features(cameras, state_dim, action_dim, image_shape),
        **overrides,
    }
    return ACTPolicy(ACTConfig(**settings)).train()


def tiny_diffusion(
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, _SIDE, _SIDE),
    **overrides: object,
) -> PreTrainedPolicy:
    """A ``DiffusionPolicy`` with two observation steps, on the CPU, in training mode.

    Args:
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction, a multiple of 4.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``DiffusionConfig``, such as ``crop_shape=(96, 96)``.
    """
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    settings: dict[str, object] = {
        "horizon": chunk_size,
        "n_action_steps": max(1, chunk_size // 2),
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
        "spatial_softmax_num_keypoints": 4,
        "down_dims": (16, 32),
        "n_groups": 4,
        "diffusion_step_embed_dim": 16,
        **features(cameras, state_dim, action_dim, image_shape),
        **overrides,
    }
    return DiffusionPolicy(DiffusionConfig(**settings)).train()
