"""Tiny policies of upstream's own classes, with random weights.

They need a checkout of ``openvla/openvla`` or ``moojink/openvla-oft`` and the libraries of its environment, but neither
TensorFlow nor weights: the heavy ``__init__`` files of its packages are left out.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from prismatic_loop import Head
from tiny_prismatic import TinyConfig
from torch import Tensor

from sfkit.errors import PluginError

_PACKAGES = ("prismatic", "prismatic.extern", "prismatic.models", "prismatic.training", "prismatic.vla")
_MODELING = "prismatic.extern.hf.modeling_prismatic"
_VOCABULARY = 32064


class Upstream:
    """The classes of one checkout. One process can have one only: both repositories name their package ``prismatic``.

    Args:
        checkout: The repository's folder.

    Raises:
        PluginError: It is not there, or another one is loaded.
    """

    def __init__(self, checkout: str | Path) -> None:
        self.folder = Path(checkout).resolve()
        if not (self.folder / "prismatic" / "extern" / "hf" / "modeling_prismatic.py").is_file():
            raise PluginError(f"{self.folder} is no checkout of openvla/openvla or moojink/openvla-oft.")
        for name in _PACKAGES:
            package = sys.modules.setdefault(name, types.ModuleType(name))
            package.__path__ = [str(self.folder / name.replace(".", "/"))]
        self.modeling: Any = importlib.import_module(_MODELING)
        if not Path(str(self.modeling.__file__)).is_relative_to(self.folder):
            raise PluginError(f"prismatic was loaded already from {self.modeling.__file__}.", "Take another process.")
        self.configuration: Any = importlib.import_module("prismatic.extern.hf.configuration_prismatic")
        _register_small_towers()

    @property
    def is_oft(self) -> bool:
        """Whether it is OpenVLA-OFT."""
        return "use_film" in inspect.signature(self.modeling.OpenVLAForActionPrediction.forward).parameters

    def module(self, name: str) -> Any:
        """Another module of the checkout, such as ``prismatic.models.action_heads``."""
        return importlib.import_module(name)

    def policy(
        self, config: TinyConfig, *, images: int = 1, seed: int = 0, attention: str = "sdpa", cls: Any = None
    ) -> Any:
        """A policy of ``config``'s sizes; ``cls`` as loaded from elsewhere, by default the checkout's own."""
        towers = ["sfkit_dino", "sfkit_siglip"] if config.fused else ["sfkit_siglip"]
        settings = self.configuration.OpenVLAConfig(
            vision_backbone_id="dinosiglip-vit-so-224px" if config.fused else "siglip-vit-so400m",
            llm_backbone_id="llama2-7b-pure",
            image_resize_strategy=config.image_resize_strategy,
            norm_stats={},
            attn_implementation=attention,
            text_config={
                "hidden_size": config.hidden_size,
                "intermediate_size": 2 * config.hidden_size,
                "num_hidden_layers": config.num_hidden_layers,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": _VOCABULARY,
                "max_position_embeddings": 512,
                "pad_token_id": config.pad_token_id,
            },
        )
        settings.timm_model_ids = towers
        settings.image_sizes, settings.timm_override_act_layers = (
            [config.image_size] * len(towers),
            [None] * len(towers),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = (cls or self.modeling.OpenVLAForActionPrediction)(settings)
        if self.is_oft:
            policy.vision_backbone.set_num_images_in_input(images)
        return policy


def upstream_config(**changes: Any) -> TinyConfig:
    """Sizes of a tiny policy, with upstream's own tokens, chunk and action (its constants for LIBERO)."""
    tokens = {"pad_token_id": 32000, "action_begin": 31743, "action_dim": 7, "chunk": 8, "proprio_dim": 8}
    return TinyConfig(**{**tokens, **changes})


class UpstreamHeads(torch.nn.Module):
    """OFT's own heads and projectors, small.

    Args:
        upstream: The checkout.
        config: Of the policy.
        seed: Of the weights.
    """

    def __init__(self, upstream: Upstream, config: TinyConfig, seed: int = 1) -> None:
        super().__init__()
        heads, projectors = (
            upstream.module(f"prismatic.models.{name}") for name in ("action_heads", "projectors")
        )  # fmt: skip
        dim = config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.l1 = heads.L1RegressionActionHead(input_dim=dim, hidden_dim=dim, action_dim=config.action_dim)
            self.diffusion = heads.DiffusionActionHead(input_dim=dim, hidden_dim=dim, action_dim=config.action_dim)
            self.proprio_projector = projectors.ProprioProjector(llm_dim=dim, proprio_dim=config.proprio_dim)
            self.noisy_action_projector = projectors.NoisyActionProjector(llm_dim=dim)

    def noise(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.diffusion.sample_noisy_actions(actions)
        return found["noise"], found["noisy_actions"], found["diffusion_timestep_embeddings"]

    def predict(self, states: Tensor, head: Head) -> Tensor:
        if head == "l1":
            return self.l1.predict_action(states)  # type: ignore[no-any-return]
        return self.diffusion.predict_noise(states)  # type: ignore[no-any-return]


def _register_small_towers() -> None:
    timm_models: Any = importlib.import_module("timm.models")
    shapes: dict[str, dict[str, Any]] = {
        "sfkit_dino": {"embed_dim": 16, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
        "sfkit_siglip": {"embed_dim": 24, "class_token": False, "global_pool": "map"},
    }
    for name, shape in shapes.items():
        if not timm_models.is_model(name):
            timm_models.register_model(_tower(name, shape))


def _tower(name: str, shape: dict[str, Any]) -> Callable[..., Any]:
    """A model's function, as timm's registry wants it."""
    transformer = importlib.import_module("timm.models.vision_transformer").VisionTransformer

    def make(pretrained: bool = False, **settings: Any) -> Any:
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            settings.pop(key, None)
        return transformer(patch_size=14, depth=3, num_heads=2, **shape, **settings)

    make.__name__, make.__module__ = name, "timm.models.vision_transformer"
    return make
