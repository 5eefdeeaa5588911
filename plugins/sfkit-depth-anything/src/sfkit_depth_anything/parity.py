"""Fixtures of Depth Anything 3's backbone: model ``DA3 backbone``.

A fixture's ``config`` gives ``num_heads``, ``alt_start``, ``patch`` and ``out_layers``. Widths, the number of blocks,
the kind of MLP and the position grid follow from the shapes. A case's input is ``images_normalised``
``(b, v, 3, h, w)``; output ``layer{i}`` is ``(b, v, n, 2 * dim)`` after block ``i``, counted from 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from sfkit_backbones.parity.base import BackboneParity, Examples
from sfkit_backbones.parity.fixture import JsonObject
from torch import Tensor, nn

from sfkit.errors import CheckpointError
from sfkit_depth_anything.backbone import DepthAnythingBackbone
from sfkit_depth_anything.config import DepthAnythingConfig
from sfkit_depth_anything.weights import IGNORED

_INPUT = "images_normalised"


class DepthAnythingParity(BackboneParity[DepthAnythingConfig]):
    """Reader of ``DA3 backbone`` fixtures."""

    ignored = IGNORED

    def build(self, config: JsonObject, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        try:
            gated = "blocks.0.mlp.w3.weight" in shapes
            inner = "blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"
            found = DepthAnythingConfig.parse(
                "a fixture of Depth Anything 3",
                {
                    "dim": shapes["cls_token"][-1],
                    "num_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
                    "heads": config["num_heads"],
                    "alt_start": config["alt_start"],
                    "hidden": shapes[inner][1],
                    "swiglu": gated,
                    "side": math.isqrt(shapes["pos_embed"][1] - 1),
                    "patch": config["patch"],
                },
            )
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"The fixture does not describe a backbone of Depth Anything 3: {type(error).__name__}: {error}.",
                "Its config must give num_heads, alt_start and patch, and its state dict the backbone's own keys.",
            ) from error
        return DepthAnythingBackbone(found)

    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        assert isinstance(backbone, DepthAnythingBackbone)
        layers = {name: 1 + int(name[len("layer") :]) for name in wanted if re.fullmatch(r"layer\d+", name)}
        layers = {name: layer for name, layer in layers.items() if layer <= backbone.config.num_layers}
        if _INPUT not in inputs:
            raise CheckpointError(f"Case {case!r} has no input {_INPUT!r}.", f"It has {', '.join(inputs)}.")
        if not layers:
            return {}
        found = backbone(inputs[_INPUT], list(layers.values()))
        return {name: feature.flatten(2, 3) for name, feature in zip(layers, found, strict=True)}

    def describe(self, config: DepthAnythingConfig) -> JsonObject:
        return {
            "num_heads": config.heads,
            "alt_start": config.alt_start,
            "out_layers": _recorded(config),
            "patch": config.patch,
            "input": "[B,S,3,H,W] ImageNet-normalized",
            "output": "patch tokens only, [local | LN(last)]",
        }

    def examples(self, config: DepthAnythingConfig) -> Examples:
        wanted = [f"layer{index}" for index in _recorded(config)]
        native, other = (config.side, config.side), (config.side - 1, config.side + 2)
        # With two views the first is the reference; with three or more its choice is tested too. The tall and the wide
        # grid have the same number of patches, which shows swapped axes.
        shapes = {
            "single": (1, 1, *native),
            "pair": (2, 2, *other),
            "triple": (2, 3, *native),
            "quadruple_tall": (1, 4, other[1], other[0]),
        }
        return {
            name: ({_INPUT: torch.randn(b, v, 3, rows * config.patch, columns * config.patch)}, wanted)
            for name, (b, v, rows, columns) in shapes.items()
        }


def _recorded(config: DepthAnythingConfig) -> list[int]:
    """The recorded blocks: the last one within views, the first of the alternating ones, and the last two."""
    start, depth = config.alt_start, config.num_layers
    return sorted({max(start - 1, 0), min(start, depth - 1), max(depth - 2, 0), depth - 1})
