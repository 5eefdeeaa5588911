"""LayerNorm and a two-layer MLP, token by token."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.projectors.base import Projector
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.utils.recompute import recompute


class MLPOptions(Options):
    """Options of :class:`MLPProjector`."""

    hidden: int | None = Field(default=None, ge=1, description="Hidden width; the teacher's width by default.")
    norm: Harmless[bool] = Field(default=True, description="LayerNorm on the student tokens first.")


class MLPProjector(Projector):
    """``LayerNorm -> Linear -> GELU -> Linear``, Xavier-uniform weights, zero biases.

    Source: the released Spatial Forcing code, which uses LayerNorm where the paper says batch norm.
    """

    name = "mlp"
    Options: ClassVar[type[Options]] = MLPOptions
    options: MLPOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        hidden = self.options.hidden or teacher_dim
        self.norm = nn.LayerNorm(student_dim) if self.options.norm else nn.Identity()
        self.fc1 = nn.Linear(student_dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, teacher_dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        inner = recompute(lambda x: self.fc1(self.norm(x)), tokens)
        return recompute(lambda x: self.fc2(self.act(x)), inner)
