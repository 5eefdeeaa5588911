"""What the configurations of tiny policies have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from lerobot.configs.types import FeatureType, PolicyFeature

if TYPE_CHECKING:
    from lerobot.processor import PolicyProcessorPipeline

#: Preprocessor and postprocessor of a policy.
Processors: TypeAlias = "tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]"

CAMERAS = ("observation.images.front", "observation.images.wrist")


def common_settings(
    cameras: Sequence[str], state_dim: int, action_dim: int, chunk_size: int, image_shape: tuple[int, int, int]
) -> dict[str, object]:
    """Fields that all configurations have, by the arguments that all builders take."""
    return {
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "max_state_dim": max(8, state_dim),
        "max_action_dim": max(8, action_dim),
        **features(cameras, state_dim, action_dim, image_shape),
    }


def features(
    cameras: Sequence[str], state_dim: int, action_dim: int, image_shape: tuple[int, int, int]
) -> dict[str, object]:
    """Inputs and outputs, and that all stays on this machine."""
    return {
        "device": "cpu",
        "push_to_hub": False,
        "input_features": {
            **{key: PolicyFeature(FeatureType.VISUAL, image_shape) for key in cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (state_dim,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
    }
