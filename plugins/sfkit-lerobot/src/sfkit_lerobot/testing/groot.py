"""A tiny GR00T N1.7."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from sfkit_lerobot.testing.settings import CAMERAS, Processors, common_settings

if TYPE_CHECKING:
    from lerobot.policies.groot.modeling_groot import GrootPolicy

_ATTENTION = {"positional_embeddings": None, "num_attention_heads": 2, "attention_head_dim": 16, "dropout": 0.0}


def tiny_groot_base(
    directory: str | Path, qwen: str | Path, *, chunk_size: int = 8, pictures: Mapping[str, object] | None = None
) -> Path:
    """Write a local GR00T N1.7 "repository": configuration, random weights and the settings of its preprocessor.

    Args:
        directory: Where to write; made if missing.
        qwen: The folder that :func:`sfkit_lerobot.testing.tiny_qwen3vl` wrote.
        chunk_size: Actions for each prediction.
        pictures: Settings of pictures in ``processor_config.json``, such as ``video_modality_keys``'s modality config
            or ``letter_box_transform``; by default they are resized to 64 pixels, of which 56 are kept.

    Returns:
        ``directory``, absolute.
    """
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    directory = Path(directory).absolute()
    config = GR00TN17Config(
        model_name=str(qwen),
        dtype="float32",
        model_dtype="float32",
        backbone_embedding_dim=64,
        select_layer=4,
        max_state_dim=8,
        max_action_dim=8,
        action_horizon=chunk_size,
        hidden_size=32,
        input_embedding_dim=32,
        max_seq_len=64,
        max_num_embodiments=11,
        state_dropout_prob=0.0,
        diffusion_model_cfg={
            **_ATTENTION,
            "num_layers": 2,
            "norm_type": "ada_norm",
            "final_dropout": True,
            "output_dim": 32,
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={**_ATTENTION, "num_attention_heads": 4, "num_layers": 1, "final_dropout": True},
    )
    GR00TN17(config, load_backbone_weights=False).save_pretrained(directory)
    settings = {"image_target_size": [64, 64], "image_crop_size": [56, 56], **(pictures or {})}
    (directory / "processor_config.json").write_text(json.dumps({"processor_kwargs": settings}))
    return directory


def tiny_groot(
    base: str | Path,
    *,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 4,
    action_dim: int = 4,
    chunk_size: int = 8,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    **overrides: object,
) -> GrootPolicy:
    """A ``GrootPolicy`` around the folder that :func:`tiny_groot_base` wrote, on the CPU, in training mode.

    The whole backbone is trainable, unlike LeRobot's default, under which alignment has nothing to train.

    Args:
        base: The folder.
        cameras: Batch keys of the images.
        state_dim: Size of the state.
        action_dim: Size of an action.
        chunk_size: Actions for each prediction.
        image_shape: Channels, height and width of the images in the dataset.
        overrides: Further fields of ``GrootConfig``, such as ``tune_llm=False``.
    """
    from lerobot.policies.groot.configuration_groot import GrootConfig
    from lerobot.policies.groot.modeling_groot import GrootPolicy

    settings: dict[str, object] = {
        "base_model_path": str(base),
        "tune_llm": True,
        "tune_visual": True,
        "use_bf16": False,
        **common_settings(cameras, state_dim, action_dim, chunk_size, image_shape),
        **overrides,
    }
    return GrootPolicy(GrootConfig(**settings)).train()


def tiny_groot_processors(policy: GrootPolicy, qwen: str | Path, stats: Mapping[str, object]) -> Processors:
    """LeRobot's own processors of a tiny GR00T, with the processor of the tiny Qwen3-VL.

    They would download that of Cosmos-Reason2, whose name is hard-coded in LeRobot.

    Args:
        policy: A tiny policy.
        qwen: The folder that :func:`sfkit_lerobot.testing.tiny_qwen3vl` wrote.
        stats: The dataset's statistics (min and max), as LeRobot takes them.

    Returns:
        Preprocessor and postprocessor.
    """
    from lerobot.policies.groot import processor_groot

    with mock.patch.object(processor_groot, "GROOT_N1_7_BACKBONE_MODEL", str(qwen)):
        processors: Processors = processor_groot.make_groot_pre_post_processors(policy.config, stats)
    return processors
