"""A tiny SmolVLA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, common_settings

if TYPE_CHECKING:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy


def tiny_smolvla(
    directory: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    **overrides: object,
) -> SmolVLAPolicy:
    """A ``SmolVLAPolicy`` around the folder that :func:`tiny_smolvlm` wrote, on the CPU, in training mode.

    The whole backbone is trainable, unlike LeRobot's default, under which alignment has nothing to train.

    Args:
        directory: The folder.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``SmolVLAConfig``, such as ``train_expert_only=True``.
    """
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    directory = Path(directory).absolute()
    side = json.loads((directory / "config.json").read_text())["vision_config"]["image_size"]
    settings: dict[str, object] = {
        "vlm_model_name": str(directory),
        "load_vlm_weights": False,
        "num_vlm_layers": 0,  # all of them
        "resize_imgs_with_padding": (side, side),
        "train_expert_only": False,
        "freeze_vision_encoder": False,
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    policy = SmolVLAPolicy(SmolVLAConfig(**settings))
    return policy.train()
