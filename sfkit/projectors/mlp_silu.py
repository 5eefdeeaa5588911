"""The three-layer MLP of REPA."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.projectors.base import Projector, xavier
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.utils.recompute import recompute


class SiLUMLPOptions(Options):
    """Options of :class:`SiLUMLPProjector`."""

    hidden: int = Field(default=2048, ge=1, description="Width of both hidden layers.")
    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")


class SiLUMLPProjector(Projector):
    """``Linear -> SiLU -> Linear -> SiLU -> Linear``, ``(b, v, gh, gw, d_student)`` to ``(..., d_teacher)``.

    Xavier-uniform weights, zero biases.

    Source: REPA, arXiv 2410.06940, section 3.3, and the repository sihyun-yu/REPA: hidden width 2048, no norm.
    """

    name = "mlp-silu"
    Options: ClassVar[type[Options]] = SiLUMLPOptions
    options: SiLUMLPOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        hidden = self.options.hidden
        self.norm = nn.LayerNorm(student_dim) if self.options.norm else nn.Identity()
        self.fc1 = xavier(nn.Linear(student_dim, hidden))
        self.fc2 = xavier(nn.Linear(hidden, hidden))
        self.fc3 = xavier(nn.Linear(hidden, teacher_dim))
        self.act = nn.SiLU()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        first = recompute(lambda x: self.fc1(self.norm(x)), tokens)
        second = recompute(lambda x: self.fc2(self.act(x)), first)
        return recompute(lambda x: self.fc3(self.act(x)), second)
