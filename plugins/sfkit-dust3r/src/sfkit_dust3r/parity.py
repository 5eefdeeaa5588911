"""Parity fixtures of the backbone of DUSt3R and MASt3R."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from sfkit_backbones.parity.base import BackboneParity, Examples
from sfkit_backbones.parity.fixture import JsonObject
from torch import Tensor, nn

from sfkit.errors import CheckpointError
from sfkit_dust3r.backbone import PairBackbone
from sfkit_dust3r.config import DUSt3RConfig

_OUTPUT = re.compile(r"view([12])\.(\d+)")


class PairParity(BackboneParity[DUSt3RConfig]):
    """Reader of ``DUSt3R trunk`` fixtures (the name in recorded files).

    Config: ``enc_heads``, ``dec_heads`` and ``patch``; the other sizes follow from the shapes. Inputs: ``img1`` and
    ``img2``, ``(b, 3, h, w)`` in [-1, 1], which may differ in size. Outputs: ``view1.k`` and ``view2.k``, where 0 is
    the encoder's normed output, and k the decoder's stream after k layers, normed at the last.
    """

    ignored = ("downstream_head1.*", "downstream_head2.*", "mask_token")

    def build(self, config: JsonObject, shapes: Mapping[str, tuple[int, ...]]) -> PairBackbone:
        dec_layers = _blocks(shapes, "dec_blocks")
        try:
            sizes: dict[str, object] = {
                "patch": config.get("patch", shapes["patch_embed.proj.weight"][-1]),
                "enc_dim": shapes["enc_norm.weight"][0],
                "enc_layers": _blocks(shapes, "enc_blocks"),
                "enc_heads": config["enc_heads"],
                "enc_hidden": shapes["enc_blocks.0.mlp.fc1.weight"][0],
                "dec_layers": dec_layers,
            }
            if dec_layers:
                sizes |= {
                    "dec_dim": shapes["dec_norm.weight"][0],
                    "dec_heads": config["dec_heads"],
                    "dec_hidden": shapes["dec_blocks.0.mlp.fc1.weight"][0],
                    "shared_decoder": not _blocks(shapes, "dec_blocks2"),
                }
        except KeyError as error:
            raise CheckpointError(
                f"The fixture describes no DUSt3R trunk: it lacks {error.args[0]!r}.",
                'Its config must hold "enc_heads" and "dec_heads", its state dict the released keys.',
            ) from error
        return PairBackbone(DUSt3RConfig.parse("a DUSt3R trunk", sizes))

    def run(
        self, backbone: nn.Module, case: str, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        assert isinstance(backbone, PairBackbone)
        sizes = backbone.config
        pair = [inputs["img1"], inputs.get("img2", inputs["img1"])]
        encoded = [backbone.encode(images, [sizes.enc_layers])[sizes.enc_layers] for images in pair]
        requested = {name: (int(found[1]), int(found[2])) for name in wanted if (found := _OUTPUT.fullmatch(name))}
        layers = [layer for _, layer in requested.values() if 0 < layer <= sizes.dec_layers]
        by_layer: dict[int, tuple[Tensor, ...]] = {0: tuple(encoded)}
        if layers:
            rows, columns = ([images.shape[axis] // sizes.patch for images in pair] for axis in (-2, -1))
            grids = (rows[0], columns[0]), (rows[1], columns[1])
            by_layer |= backbone.decode(backbone.embed(encoded[0]), backbone.embed(encoded[1]), grids, layers)
        return {name: by_layer[layer][view - 1] for name, (view, layer) in requested.items() if layer in by_layer}

    def describe(self, config: DUSt3RConfig) -> JsonObject:
        heads = {"enc_heads": config.enc_heads, "dec_heads": config.dec_heads, "patch": config.patch}
        return {
            **heads,
            "input": "[B,3,H,W] in [-1,1]",
            "outputs": "view{1,2}.{0=encoder, normed; 1..L-1=decoder layers; L=last, normed}",
        }

    def examples(self, config: DUSt3RConfig) -> Examples:
        sizes = {
            "square": (2, (3, 3), (3, 3)),
            "landscape": (1, (2, 4), (2, 4)),
            "portrait_and_landscape": (1, (4, 3), (2, 5)),
        }
        outputs = [f"view{view}.{layer}" for view in (1, 2) for layer in range(config.dec_layers + 1)]
        return {
            name: ({f"img{i}": _images(b, grid, config.patch) for i, grid in enumerate(grids, 1)}, outputs)
            for name, (b, *grids) in sizes.items()
        }


def _images(b: int, grid: tuple[int, int], patch: int) -> Tensor:
    return torch.rand(b, 3, grid[0] * patch, grid[1] * patch) * 2 - 1


def _blocks(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{stack}.")})
