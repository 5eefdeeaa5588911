"""A tiny VLA-JEPA, without its world model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, common_settings

if TYPE_CHECKING:
    from lerobot.policies.vla_jepa.modeling_vla_jepa import VLAJEPAPolicy


def tiny_vla_jepa(
    qwen: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    **overrides: object,
) -> VLAJEPAPolicy:
    """A ``VLAJEPAPolicy`` around the folder that :func:`tiny_qwen3vl` wrote, on the CPU, in training mode.

    Args:
        qwen: The folder.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``VLAJEPAConfig``, such as ``freeze_qwen=True``.
    """
    from lerobot.policies.vla_jepa.configuration_vla_jepa import VLAJEPAConfig
    from lerobot.policies.vla_jepa.modeling_vla_jepa import VLAJEPAPolicy

    common = common_settings(cameras, state_dim, action_dim, chunk_size, image_shape)
    settings: dict[str, object] = {
        "qwen_model_name": str(qwen),
        "enable_world_model": False,
        "torch_dtype": "float32",
        "action_hidden_size": 32,
        "action_num_layers": 2,
        "action_num_heads": 2,
        "action_attention_head_dim": 16,
        "action_dropout": 0.0,
        "num_inference_timesteps": 2,
        "repeated_diffusion_steps": 2,
        "num_embodied_action_tokens_per_instruction": 4,
        "num_action_tokens_per_timestep": 1,
        **{key: value for key, value in common.items() if key not in ("max_state_dim", "max_action_dim")},
        **overrides,
    }
    return VLAJEPAPolicy(VLAJEPAConfig(**settings)).train()
