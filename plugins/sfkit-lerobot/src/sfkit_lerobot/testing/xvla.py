"""A tiny X-VLA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, Processors, common_settings
from sfkit_lerobot.testing.tokenizer import byte_tokenizer

if TYPE_CHECKING:
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy

#: Patches that do not overlap, unlike Florence-2's own: with random weights these would see their neighbors best.
_VISION = {
    "depths": [1, 1, 1, 1],
    "patch_size": [4, 2, 2, 2],
    "patch_stride": [4, 2, 2, 2],
    "patch_padding": [0, 0, 0, 0],
    "embed_dim": [16, 16, 32, 32],
    "num_heads": [2, 2, 2, 2],
    "num_groups": [2, 2, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "projection_dim": 64,
    "max_position_embeddings": 16,
}
_TEXT = {
    "model_type": "bart",
    "vocab_size": 512,
    "d_model": 64,
    "encoder_layers": 4,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
    "dropout": 0.0,
}


def tiny_xvla(
    directory: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 128, 128),
    **overrides: object,
) -> XVLAPolicy:
    """An ``XVLAPolicy`` with 128-pixel views (4 x 4 tokens), on the CPU, in training mode.

    Args:
        directory: Where its tokenizer is, or is written.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``XVLAConfig``, such as ``freeze_vision_encoder=True``.
    """
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy

    directory = Path(directory).absolute()
    if not (directory / "tokenizer.json").is_file():
        byte_tokenizer().save_pretrained(directory)
    settings: dict[str, object] = {
        "tokenizer_name": str(directory),
        "florence_config": {"vision_config": _VISION, "text_config": _TEXT},
        "resize_imgs_with_padding": (128, 128),
        "action_mode": "auto",
        "hidden_size": 32,
        "depth": 1,
        "num_heads": 2,
        "num_domains": 4,
        "len_soft_prompts": 2,
        "max_len_seq": 256,
        "num_denoising_steps": 2,
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    return XVLAPolicy(XVLAConfig(**settings)).train()


def tiny_xvla_processors(policy: XVLAPolicy, stats: Mapping[str, object]) -> Processors:
    """LeRobot's own processors of an X-VLA: preprocessor and postprocessor."""
    from lerobot.policies.xvla.processor_xvla import make_xvla_pre_post_processors

    processors: Processors = make_xvla_pre_post_processors(policy.config, dict(stats))
    return processors
