"""Tiny models of each family, written as their authors publish them: config, image processor, safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

from sfkit_backbones.randomize import randomize

from sfkit.utils.runtime import own_rng
from sfkit.views.types import Views

_BLOCKS = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
_VIT = {**_BLOCKS, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
_DINO = {**_BLOCKS, "image_size": 32, "patch_size": 8, "mlp_ratio": 2}
_TEXT = {**_BLOCKS, "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 8}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_SIDE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Made:
    """A tiny model: how it is built, and the processor beside it."""

    model: Callable[[], Any]
    processor: Callable[[], Any]
    video: bool = False


def _class(name: str) -> Any:
    # Some releases have an image processor only under its longer name.
    found = getattr(transformers, name, None) or getattr(transformers, f"{name}Fast", None)
    if found is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return found


def _image(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: _class(name)(**{"size": _SIDE, **_IMAGENET, **settings})


def _model(model: str, config: str, **settings: Any) -> Callable[[], Any]:
    return lambda: _class(model)(_class(config)(**settings))


FAMILIES: dict[str, Made] = {
    "dinov2": Made(_model("Dinov2Model", "Dinov2Config", **_DINO), _image("BitImageProcessor", crop_size=_SIDE)),
    "dinov2_registers": Made(
        _model("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=3, **_DINO),
        _image("BitImageProcessor", crop_size=_SIDE),
    ),
    "dinov3": Made(
        _model("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, **_VIT), _image("DINOv3ViTImageProcessor")
    ),
    "dinov3_convnext": Made(
        _model("DINOv3ConvNextModel", "DINOv3ConvNextConfig", hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1]),
        _image("DINOv3ViTImageProcessor", size={"height": 96, "width": 96}),
    ),
    "siglip": Made(
        _model("SiglipModel", "SiglipConfig", vision_config=_VIT, text_config=_TEXT),
        _image("SiglipImageProcessor", image_mean=[0.5] * 3, image_std=[0.5] * 3),
    ),
    "siglip2_naflex": Made(
        _model(
            "Siglip2Model",
            "Siglip2Config",
            vision_config={**_BLOCKS, "intermediate_size": 48, "num_patches": 16, "patch_size": 8},
            text_config=_TEXT,
        ),
        lambda: _class("Siglip2ImageProcessor")(max_num_patches=16, patch_size=8),
    ),
    "clip": Made(
        _model("CLIPModel", "CLIPConfig", vision_config=_VIT, text_config=_TEXT),
        lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SIDE),
    ),
    "depth_anything": Made(
        _model(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            backbone_config={"model_type": "dinov2", "out_features": ["stage2", "stage3"], **_DINO},
            reassemble_hidden_size=24,
            patch_size=8,
            reassemble_factors=[2, 1],
            neck_hidden_sizes=[8, 8],
            fusion_hidden_size=8,
            head_hidden_size=4,
        ),
        _image("DPTImageProcessor", keep_aspect_ratio=True, ensure_multiple_of=8),
    ),
    "vjepa2": Made(
        _model(
            "VJEPA2Model",
            "VJEPA2Config",
            **{**_BLOCKS, "patch_size": 8, "crop_size": 32, "frames_per_clip": 8, "tubelet_size": 2, "mlp_ratio": 2},
            pred_hidden_size=12,
            pred_num_hidden_layers=2,
            pred_num_attention_heads=2,
            pred_num_mask_tokens=2,
        ),
        lambda: _class("VJEPA2VideoProcessor")(size={"shortest_edge": 36}, crop_size=_SIDE),
        video=True,
    ),
    "ijepa": Made(_model("IJepaModel", "IJepaConfig", **_VIT), _image("ViTImageProcessor")),
    "vit": Made(_model("ViTModel", "ViTConfig", **_VIT), _image("ViTImageProcessor")),
    "vit_msn": Made(_model("ViTMSNModel", "ViTMSNConfig", **_VIT), _image("ViTImageProcessor")),
    "deit": Made(_model("DeiTModel", "DeiTConfig", **_VIT), _image("DeiTImageProcessor", crop_size=_SIDE)),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family, made when first asked for; never change what is in it."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            with warnings.catch_warnings(), own_rng():
                warnings.simplefilter("ignore")  # transformers' own about its defaults
                randomize(FAMILIES[name].model(), seed=3).save_pretrained(path)
                FAMILIES[name].processor().save_pretrained(path)
            (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")
        return path

    return folder


@pytest.fixture
def dinov2(folders: Callable[[str], Path]) -> Path:
    """DINOv2, for tests that need any family."""
    return folders("dinov2")


def views_of(images: Tensor, valid: Tensor | None = None) -> Views:
    """Views without geometry."""
    b, v, _, h, w = images.shape
    if valid is None:
        valid = torch.ones(b, v, h, w, dtype=torch.bool)
    return Views(images, valid, tuple(f"camera{i}" for i in range(v)))


@pytest.fixture
def make_views() -> Callable[..., Views]:
    """``make_views(b, v, h, w)``: random 8-bit images, in [0, 1]."""

    def make(b: int, v: int, h: int = 32, w: int = 32, seed: int = 0) -> Views:
        generator = torch.Generator().manual_seed(seed)
        return views_of(torch.randint(0, 256, (b, v, 3, h, w), generator=generator) / 255)

    return make
