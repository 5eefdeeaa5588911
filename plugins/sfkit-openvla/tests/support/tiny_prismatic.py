"""Tiny policies of the stand-in ``prismatic``, and the sizes that they share with those of a checkout.

Nothing of ``prismatic`` is imported before a policy is made, as a checkout may have taken that name.

Upstream's class is mostly found in a module that Hugging Face makes for code from the Hub: :func:`tiny_openvla` and
:func:`tiny_oft` name their class so.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch

#: As in upstream's vocabulary, from the end: padding to a multiple of 64, the pad token, 256 action tokens, the rest.
VOCABULARY, PAD, ACTION_BEGIN = 384, 320, 63
STOP = 2
#: Where Hugging Face puts the code of a checkpoint, and where upstream's own repositories have it.
REMOTE_CODE = "transformers_modules.openvla.openvla-7b.31f090d05236101ebfc381b61c674dd4746d4ce0.modeling_prismatic"
REPOSITORY = "prismatic.extern.hf.modeling_prismatic"


@dataclass
class TinyConfig:
    """The part of upstream's configuration that matters, and what makes it small."""

    hidden_size: int = 32
    num_hidden_layers: int = 4
    image_size: int = 56
    fused: bool = True
    image_resize_strategy: str = "resize-naive"
    both_ways: bool = False
    action_dim: int = 3
    chunk: int = 2
    proprio_dim: int = 4
    pad_token_id: int = PAD
    action_begin: int = ACTION_BEGIN
    vocabulary: int = VOCABULARY
    use_return_dict: bool = True
    model_type: str = "openvla"

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary; PEFT asks for it."""
        return asdict(self)


def add_film(policy: Any) -> None:
    """What OFT's script does after LoRA; ``policy`` may be a PeftModel."""
    from prismatic.models.film_vit_wrapper import FiLMedPrismaticVisionBackbone

    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    base.vision_backbone = FiLMedPrismaticVisionBackbone(vision_backbone=base.vision_backbone, llm_dim=base.llm_dim)


def tiny_openvla(seed: int = 0, module: str = REMOTE_CODE, **config: Any) -> Any:
    """OpenVLA with random weights, its class found in ``module``."""
    return _make("OpenVLA", seed, module, TinyConfig(**config))


def tiny_oft(seed: int = 0, module: str = REMOTE_CODE, *, images: int = 2, **config: Any) -> Any:
    """OpenVLA-OFT with random weights, for so many images, on the fork of transformers unless ``both_ways=False``."""
    policy = _make("OFT", seed, module, TinyConfig(**{"both_ways": True, **config}))
    policy.vision_backbone.set_num_images_in_input(images)
    return policy


def _make(name: str, seed: int, module: str, config: TinyConfig) -> Any:
    from prismatic.extern.hf import modeling_prismatic

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _found_in(getattr(modeling_prismatic, name), module)(config)


@functools.cache
def _found_in(cls: Any, module: str) -> Any:
    """The class as if its code lay in ``module``: adapters are chosen by that name."""
    name = "OpenVLAForActionPrediction"
    return type(name, (cls,), {"__module__": module, "__qualname__": name, "__doc__": cls.__doc__})
