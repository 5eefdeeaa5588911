"""A linear map, token by token."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.projectors.base import Projector, xavier
from sfkit.registry.component import AnyOptions, Harmless


class LinearOptions(Options):
    """Options of :class:`LinearProjector`."""

    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")
    bias: Harmless[bool] = Field(default=True, description="Add a bias.")


class LinearProjector(Projector):
    """``W h + b``, ``(b, v, gh, gw, d_student)`` to ``(..., d_teacher)``; Xavier-uniform weights, zero bias.

    What it cannot map must be in the tokens themselves, which makes it the stricter test of the policy: compare the
    linear probes of Alain and Bengio, arXiv 1610.01644.
    """

    name = "linear"
    Options: ClassVar[type[Options]] = LinearOptions
    options: LinearOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        self.norm = nn.LayerNorm(student_dim) if self.options.norm else nn.Identity()
        self.fc = xavier(nn.Linear(student_dim, teacher_dim, bias=self.options.bias))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        projected: Tensor = self.fc(self.norm(tokens))
        return projected
