"""Stand-in of OpenVLA's vision backbone: two vision transformers, fused on channels.

Quirks of ``modeling_prismatic.py`` (repositories ``openvla/openvla`` and ``moojink/openvla-oft``):

* Each image has six channels, three normalized as DINOv2 wants them and then three as SigLIP does; views follow each
  other on the channel axis. Fusing on channels leaves the token count alone.
* ``forward`` of a featurizer is replaced on the *instance* by one that returns what the last block but one gave, so the
  last block runs for nothing and its weights never get a gradient.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

PATCH = 14


class _Patches(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)
        self.grid_size = (size // PATCH, size // PATCH)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), _Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A vision transformer with timm's names.

    Args:
        size: Side of an image in pixels.
        dim: Width.
        prefix: Tokens before the patches: 5 for DINOv2 with registers, 0 for SigLIP.
    """

    def __init__(self, size: int, dim: int, prefix: int, num_layers: int = 3) -> None:
        super().__init__()
        self.embed_dim, self.num_prefix_tokens = dim, prefix
        self.patch_embed = _Patches(size, dim)
        self.prefix = nn.Parameter(torch.randn(1, prefix, dim))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, self.patch_embed.num_patches, dim))
        self.blocks = nn.Sequential(*(_Block(dim) for _ in range(num_layers)))
        self.forward = functools.partial(self.features, wanted=num_layers - 2)

    def features(self, images: Tensor, *condition: Tensor, wanted: int) -> Tensor:
        """Patch tokens after block ``wanted`` (from 0), all blocks being run."""
        x = self.patch_embed(images) + self.pos_embed
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        kept = x
        for index, block in enumerate(self.blocks):
            x = block(x, *condition)
            kept = x if index == wanted else kept
        return kept[:, self.num_prefix_tokens :]


class VisionBackbone(nn.Module):
    """One vision transformer, or two that are fused.

    Args:
        size: Side of an image in pixels.
        fused: DINOv2 and SigLIP; else SigLIP alone.
        counts_images: Take several images (OpenVLA-OFT only, and only fused).
    """

    def __init__(self, size: int, *, fused: bool, counts_images: bool) -> None:
        super().__init__()
        self.use_fused_vision_backbone = fused
        self.featurizer = VisionTransformer(size, 16 if fused else 24, prefix=5 if fused else 0)
        self.embed_dim = self.featurizer.embed_dim
        if fused:
            self.fused_featurizer = VisionTransformer(size, 24, prefix=0)
            self.embed_dim += self.fused_featurizer.embed_dim
        if counts_images:
            self.num_images_in_input = 1

    def get_num_patches(self) -> int:
        """Tokens of an image."""
        return self.featurizer.patch_embed.num_patches

    def get_num_images_in_input(self) -> int:
        """Images of a sample."""
        return self.num_images_in_input

    def set_num_images_in_input(self, count: int) -> None:
        """Set the images of a sample."""
        self.num_images_in_input = count

    def forward(self, pixel_values: Tensor, *condition: Tensor) -> Tensor:
        """Tokens of all images, view after view: ``(b, views * patches, embed_dim)``."""
        if not self.use_fused_vision_backbone:
            return self.featurizer(pixel_values, *condition)  # type: ignore[no-any-return]
        found = []
        for image in torch.split(pixel_values, 6, dim=1):
            first, second = torch.split(image, 3, dim=1)
            pair = (self.featurizer(first, *condition), self.fused_featurizer(second, *condition))
            found.append(torch.cat(pair, dim=2))
        return torch.cat(found, dim=1)
