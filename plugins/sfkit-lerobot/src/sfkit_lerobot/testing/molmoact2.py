"""A tiny MolmoAct2, and the local checkpoint that it is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfkit_lerobot.testing.fast import action_words
from sfkit_lerobot.testing.settings import CAMERAS, features
from sfkit_lerobot.testing.tokenizer import TEXTS, byte_tokenizer

if TYPE_CHECKING:
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy

#: Special tokens of images, by the names that the model's configuration has for them.
_PICTURE_TOKENS = {
    "image_start_token_id": "<im_start>",
    "low_res_image_start_token_id": "<low_res_im_start>",
    "image_end_token_id": "<im_end>",
    "image_low_res_id": "<im_low>",
    "image_patch_id": "<im_patch>",
    "image_col_id": "<im_col>",
    "frame_start_token_id": "<frame_start>",
    "frame_end_token_id": "<frame_end>",
}
_ACTION_TOKENS = {"action_start_token_id": "<action_start>", "action_end_token_id": "<action_end>"}
#: Tokens of the tiny language model: those of text and images, then one for each word of an action.
_WORDS = 192
#: Sides in pixels: an odd number of patches, as in the real one, so that the last row and column are pooled alone.
_PATCH, _VIEW = 8, 56


def tiny_molmoact2_base(
    directory: str | Path, *, texts: Sequence[str] = TEXTS, pictures: Mapping[str, object] | None = None
) -> Path:
    """Write a local MolmoAct2 "repository": configuration, random weights, tokenizers and processor.

    An image becomes 7 x 7 patches and 4 x 4 tokens, of which the last row and column are half empty.

    Args:
        directory: Where to write; made if missing.
        texts: What the byte-level tokenizer is trained on; any other text is encoded too, in more tokens.
        pictures: Settings of the image processor, such as ``crop_mode``.

    Returns:
        ``directory``, absolute.
    """
    from lerobot.policies.molmoact2.molmoact2_hf_model.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2ForConditionalGeneration

    directory = Path(directory).absolute()
    special = {**_PICTURE_TOKENS, **_ACTION_TOKENS, "action_output_token_id": "<action_output>"}
    tokenizer = byte_tokenizer(texts, special)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    first_word = len(tokenizer)
    tokenizer.add_tokens([f"<action_{index}>" for index in range(_WORDS)])
    config = MolmoAct2Config(
        **ids,
        eos_token_id=tokenizer.eos_token_id,
        action_token_start_id=first_word,
        num_action_tokens=_WORDS,
        **_sizes(len(tokenizer)),
    )
    MolmoAct2ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    image = {
        "size": {"height": _VIEW, "width": _VIEW},
        "crop_mode": "resize",
        "patch_size": _PATCH,
        "pooling_size": [2, 2],
        **(pictures or {}),
    }
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": image}))
    actions, words = directory / "actions", action_words()
    words.tokenizer.save_pretrained(actions)
    settings = {"scale": words.scale, "vocab_size": words.vocab_size, "min_token": words.min_token}
    (actions / "processor_config.json").write_text(json.dumps({**settings, "action_dim": 4, "time_horizon": 8}))
    return directory


def _sizes(vocabulary: int) -> dict[str, object]:
    attention = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    # At these widths the usual 0.02 shrinks what an image changes to the size of rounding.
    weights = {"initializer_range": 0.05}
    return {
        **weights,
        "vit_config": {
            **weights,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "image_default_input_size": (_VIEW, _VIEW),
            "image_patch_size": _PATCH,
            "image_num_pos": (_VIEW // _PATCH) ** 2,
            **attention,
        },
        "adapter_config": {
            **weights,
            "vit_layers": (-1, -2),
            "hidden_size": 32,
            "intermediate_size": 64,
            "text_hidden_size": 64,
            **attention,
        },
        "text_config": {
            **weights,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": vocabulary,
            "additional_vocab_size": 8,
            "use_qk_norm": True,
            "qk_norm_type": "qwen3",
        },
        "action_expert_config": {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 2,
            "ffn_multiple_of": 32,
            "timestep_embed_dim": 32,
        },
    }


def tiny_molmoact2(
    base: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    **overrides: object,
) -> MolmoAct2Policy:
    """A ``MolmoAct2Policy`` from the folder that :func:`tiny_molmoact2_base` wrote, on the CPU, in training mode.

    It predicts continuous actions, as flow and as words of FAST.

    Args:
        base: The folder.
        cameras: Batch keys of the images, in the policy's order.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``MolmoAct2Config``, such as ``action_mode="continuous"``.
    """
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy

    settings: dict[str, object] = {
        "checkpoint_path": str(base),
        "discrete_action_tokenizer": str(Path(base) / "actions"),
        "inference_action_mode": "discrete" if overrides.get("action_mode") == "discrete" else "continuous",
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "num_flow_timesteps": 2,
        "num_inference_steps": 2,
        "max_sequence_length": 512,
        "model_dtype": "float32",
        **features(cameras, state_dim, action_dim, image_shape),
        **overrides,
    }
    return MolmoAct2Policy(MolmoAct2Config(**settings)).train()
