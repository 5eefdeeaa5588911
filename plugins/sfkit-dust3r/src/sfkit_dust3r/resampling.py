"""Pillow's resampling on float tensors: a product with one matrix for the rows and one for the columns."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["bicubic", "lanczos"]


def resize(images: Tensor, size: tuple[int, int], kernel: Kernel) -> Tensor:
    """Resize as ``PIL.Image.resize`` does: columns first, then rows; the kernel widens when it shrinks an image.

    Args:
        images: ``(..., h, w)`` float32 in [0, 1].
        size: Height and width of the result.
        kernel: ``bicubic`` (a = -0.5) or ``lanczos`` (three lobes).

    Returns:
        ``(..., *size)`` float32, clamped to [0, 1] after each of the two steps, as 8-bit images are.
    """
    (h, w), (rows, columns) = images.shape[-2:], size
    if w != columns:
        images = (images @ resampling_matrix(w, columns, kernel, images.device).T).clamp(0, 1)
    if h != rows:
        images = (resampling_matrix(h, rows, kernel, images.device) @ images).clamp(0, 1)
    return images


@functools.lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int, kernel: Kernel, device: torch.device) -> Tensor:
    """Weights ``(new, old)`` float32 of each old sample in each new one; rows sum to one.

    A new sample's center lies at ``(i + 1/2) * old / new - 1/2``. The kernel is stretched by ``old / new`` when that is
    above one, cut off at the image's border, and normalized.
    """
    # The result is cached, so it must not be a tensor of inference mode, which autograd refuses.
    with torch.inference_mode(False):
        scale = old / new
        stretch = max(scale, 1.0)
        centers = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
        samples = torch.arange(old, dtype=torch.float64) + 0.5
        weights = _KERNELS[kernel]((samples[None] - centers[:, None]) / stretch)
        return (weights / weights.sum(1, keepdim=True)).float().to(device)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 at distances ``(new, old)`` in samples."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    """Lanczos kernel of three lobes at distances ``(new, old)`` in samples."""
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


_KERNELS = {"bicubic": _bicubic, "lanczos": _lanczos}
