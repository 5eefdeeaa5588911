"""A convolution over the grid of each view."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.projectors.base import Projector, xavier
from sfkit.registry.component import AnyOptions, Harmless


class ConvOptions(Options):
    """Options of :class:`ConvProjector`."""

    kernel: int = Field(default=3, ge=1, description="Side of the kernel in patches; odd.")
    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("an even kernel has no center, and would shift the grid")
        return value


class ConvProjector(Projector):
    """One convolution with zero padding, view by view: ``(b, v, gh, gw, d_student)`` to ``(..., d_teacher)``.

    A masked token counts as what lies beyond the border, as zeros: nothing of it reaches its neighbors. Xavier-uniform
    weights, zero bias.

    Source: iREPA, arXiv 2512.10794 (3 x 3, padding 1, no norm).
    """

    name = "conv"
    Options: ClassVar[type[Options]] = ConvOptions
    options: ConvOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        kernel = self.options.kernel
        self.norm = nn.LayerNorm(student_dim) if self.options.norm else nn.Identity()
        self.conv = xavier(nn.Conv2d(student_dim, teacher_dim, kernel, padding=kernel // 2))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # Here again, after the norm, whose bias would be seen by the neighbors of a masked token.
        clean = torch.where(mask.unsqueeze(-1), self.norm(tokens), 0.0)
        pictures = clean.flatten(0, 1).permute(0, 3, 1, 2)
        projected: Tensor = self.conv(pictures).permute(0, 2, 3, 1)
        return projected.reshape(*tokens.shape[:-1], self.teacher_dim)
