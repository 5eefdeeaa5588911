"""Parity fixtures of VGGT's backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from sfkit_backbones.parity.base import BackboneParity, Examples
from sfkit_backbones.parity.fixture import JsonObject
from torch import Tensor, nn

from sfkit.errors import CheckpointError, ConfigError
from sfkit_vggt.aggregator import Aggregator
from sfkit_vggt.config import VggtConfig
from sfkit_vggt.teacher import VggtTeacher

_EMBEDDER = f"{VggtTeacher.prefix}patch_embed."
#: A case with this text in its name is recorded with ``round_angles``.
ROUNDED = "bf16_rounded_rope_angles"


class VggtParity(BackboneParity[VggtConfig]):
    """Reads fixtures of the model ``VGGT aggregator``.

    ``config``: ``embed_dim``, ``num_heads``, ``depth``, ``dino_num_heads``, ``dino_depth``, ``patch``, ``img_size`` and
    ``patch_start``. Input: ``images (b, s, 3, h, w)`` in [0, 1]. Outputs: ``layer<i>``, counted from 0, all tokens and
    both halves, ``(b, s, p, 2 * embed_dim)``. A case with ``bf16_rounded_rope_angles`` in its name has rounded angles.
    """

    prefix = VggtTeacher.prefix
    ignored = VggtTeacher.ignored

    def build(self, config: JsonObject, shapes: Mapping[str, tuple[int, ...]]) -> Aggregator:
        try:
            sizes = VggtConfig(
                dim=config["embed_dim"],
                heads=config["num_heads"],
                num_layers=config["depth"],
                hidden=shapes[f"{self.prefix}frame_blocks.0.mlp.fc1.weight"][0],
                registers=shapes[f"{self.prefix}register_token"][2],
                embed_heads=config["dino_num_heads"],
                embed_layers=config["dino_depth"],
                embed_hidden=shapes.get(f"{_EMBEDDER}blocks.0.mlp.fc1.weight", (4 * config["embed_dim"],))[0],
                embed_registers=shapes[f"{_EMBEDDER}register_tokens"][1],
                patch=config["patch"],
                native=config["img_size"],
            )
            if config.get("patch_start", 1 + sizes.registers) != 1 + sizes.registers:
                raise ValueError(f"patch_start {config['patch_start']} does not fit {sizes.registers} registers")
        except (KeyError, IndexError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"The fixture describes no VGGT aggregator: {type(error).__name__}: {error}.",
                "See the documentation of sfkit_vggt.parity.VggtParity for what its config must hold.",
            ) from error
        return Aggregator(sizes)

    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        assert isinstance(backbone, Aggregator)
        numbers = {name: int(found[1]) + 1 for name in wanted if (found := re.fullmatch(r"layer(\d+)", name))}
        layers = {name: layer for name, layer in numbers.items() if layer <= backbone.config.num_layers}
        if "images" not in inputs or not layers:
            return {}
        images = inputs["images"]
        backbone.round_angles = ROUNDED in case
        outputs = backbone(images if images.ndim == 5 else images.unsqueeze(0), list(layers.values()))
        return dict(zip(layers, outputs, strict=True))

    def describe(self, config: VggtConfig) -> JsonObject:
        return {
            "embed_dim": config.dim,
            "num_heads": config.heads,
            "depth": config.num_layers,
            "dino_num_heads": config.embed_heads,
            "dino_depth": config.embed_layers,
            "patch": config.patch,
            "img_size": config.native,
            "patch_start": 1 + config.registers,
        }

    def examples(self, config: VggtConfig) -> Examples:
        side, every = config.native_side, [f"layer{i}" for i in range(config.num_layers)]
        rows = next(rows for rows in (2, 3, 1) if side * side % rows == 0 and (rows != side or rows == 1))

        def case(b: int, s: int, rows: int, columns: int) -> tuple[dict[str, Tensor], list[str]]:
            return {"images": torch.rand(b, s, 3, rows * config.patch, columns * config.patch)}, every

        return {
            "native": case(1, 2, side, side),
            "single_view_on_a_larger_grid": case(1, 1, side + 2, side + 2),
            "batch_on_a_smaller_landscape": case(2, 3, max(side - 2, 1), max(side - 2, 1) + 1),
            "as_many_patches_but_not_square": case(1, 1, rows, side * side // rows),
            ROUNDED: case(1, 1, side, side),
        }
