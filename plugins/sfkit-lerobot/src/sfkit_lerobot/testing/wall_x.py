"""A tiny Wall-X, and the local checkpoint that it is built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, common_settings
from sfkit_lerobot.testing.tokenizer import TEXTS, byte_tokenizer

if TYPE_CHECKING:
    from lerobot.policies.wall_x.modeling_wall_x import WallXPolicy

_IMAGE_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "propri_token": "<|propri|>",
    "action_token": "<|action|>",
    "action_fast_token": "<|action_fast|>",
}


def tiny_wall_x_base(directory: str | Path, *, texts: Sequence[str] = TEXTS) -> Path:
    """Write a local Wall-X "repository": configuration, random weights, tokenizer and processor.

    A square image becomes 9 x 9 tokens, as in the real one.

    Args:
        directory: Where to write; made if missing.
        texts: What the byte-level tokenizer is trained on; any other text is encoded too, in more tokens.

    Returns:
        ``directory``, absolute.
    """
    from lerobot.policies.wall_x.modeling_wall_x import Qwen2_5_VLMoEForAction
    from lerobot.policies.wall_x.qwen_model import Qwen2_5_VLConfig
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    directory = Path(directory).absolute()
    tokenizer = byte_tokenizer(texts, _IMAGE_TOKENS)
    expert = {"hidden_size": 64, "intermediate_size": 128, "hidden_act": "silu"}
    config = Qwen2_5_VLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        agent_pos_config={"joints": 8},
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "pad_token_id": tokenizer.pad_token_id,
            "mlp_moe": True,
            "num_experts": 2,
            "experts": [expert, expert],
            "dim_inputs": (64, 64),
            "dof_config": {"joints": 8},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
        },
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    config.save_pretrained(directory)
    processor.save_pretrained(directory)
    weights = Qwen2_5_VLMoEForAction(config, processor=processor).state_dict()
    save_file({key: value.clone().contiguous() for key, value in weights.items()}, directory / "model.safetensors")
    return directory


def tiny_wall_x(
    base: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 126, 126),
    **overrides: object,
) -> WallXPolicy:
    """A ``WallXPolicy`` from the folder that :func:`tiny_wall_x_base` wrote, on the CPU, in training mode.

    Its backbone is in bfloat16: LeRobot has no other way.

    Args:
        base: The folder.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``WallXConfig``.
    """
    from lerobot.policies.wall_x.configuration_wall_x import WallXConfig
    from lerobot.policies.wall_x.modeling_wall_x import WallXPolicy

    settings: dict[str, object] = {
        "pretrained_name_or_path": str(base),
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    return WallXPolicy(WallXConfig(**settings)).train()
