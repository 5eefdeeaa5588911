"""A tiny EVO1, and the tiny InternVL3 that it is built around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.settings import CAMERAS, common_settings
from sfkit_lerobot.testing.tokenizer import TEXTS, byte_tokenizer

if TYPE_CHECKING:
    from lerobot.policies.evo1.modeling_evo1 import Evo1Policy

_IMAGE_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
}


def tiny_internvl(directory: str | Path, *, texts: Sequence[str] = TEXTS) -> Path:
    """Write a local InternVL3 "repository": configuration, random weights and tokenizer.

    An image of 64 pixels becomes 4 x 4 tokens.

    Args:
        directory: Where to write; made if missing.
        texts: What the byte-level tokenizer is trained on; any other text is encoded too, in more tokens.

    Returns:
        ``directory``, absolute.
    """
    from transformers import InternVLConfig, InternVLModel

    directory = Path(directory).absolute()
    tokenizer = byte_tokenizer(texts, _IMAGE_TOKENS)
    config = InternVLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [64, 64],
            "patch_size": [8, 8],
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    )
    InternVLModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_evo1(
    internvl: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    **overrides: object,
) -> Evo1Policy:
    """An ``Evo1Policy`` around the folder that :func:`tiny_internvl` wrote, on the CPU, in training mode.

    The whole backbone is trainable, unlike LeRobot's default, under which alignment has nothing to train.

    Args:
        internvl: The folder.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``Evo1Config``, such as ``training_stage="stage1"``.
    """
    from lerobot.policies.evo1.configuration_evo1 import Evo1Config
    from lerobot.policies.evo1.modeling_evo1 import Evo1Policy

    settings: dict[str, object] = {
        "vlm_model_name": str(internvl),
        "vlm_num_layers": 4,
        "vlm_dtype": "float32",
        "use_flash_attn": False,
        "image_resolution": (64, 64),
        "training_stage": "stage2",
        "embed_dim": 64,
        "hidden_dim": 32,
        "state_hidden_dim": 32,
        "num_heads": 2,
        "num_layers": 2,
        "num_inference_timesteps": 2,
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    return Evo1Policy(Evo1Config(**settings)).train()
