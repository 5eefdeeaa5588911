"""An MLP of which any prefix of the hidden units is a projector too."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.projectors.base import Projector, xavier
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.utils.recompute import recompute


class NestedOptions(Options):
    """Options of :class:`NestedProjector`."""

    hidden: int | None = Field(default=None, ge=1, description="All hidden units; the teacher's width by default.")
    share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the hidden units that is used where each pair has its own."
    )
    smallest: float = Field(
        default=0.2, gt=0, le=1, description="Share that the first of several pairs uses where they share one."
    )
    norm: Harmless[bool] = Field(default=True, description="LayerNorm on the student tokens first.")


def nested_widths(pairs: int, hidden: int, smallest: float = 0.2) -> tuple[int, ...]:
    """How many hidden units each pair uses, shallow to deep: evenly from ``smallest`` of them to all.

    Ten pairs of 2048 units: 409, 591, 773, 955, 1137, 1319, 1501, 1683, 1865, 2048. A single pair uses them all (the
    released ROCKET code gives it the smallest width, and so cripples the baseline that it is compared with).

    Raises:
        ConfigError: No pair, or ``smallest`` outside (0, 1].
    """
    if pairs < 1 or not 0 < smallest <= 1:
        raise ConfigError(
            f"No widths for {pairs} pairs from a share of {smallest:g}.", "Give pairs >= 1 and 0 < smallest <= 1."
        )
    if pairs == 1:
        return (hidden,)
    shares = (smallest + (1 - smallest) * i / (pairs - 1) for i in range(pairs))
    return tuple(max(1, int(share * hidden)) for share in shares)


class NestedProjector(Projector):
    """``LayerNorm -> Linear -> GELU -> Linear`` on the first ``m`` of its hidden units.

    ``(b, v, gh, gw, d_student)`` to ``(..., d_teacher)``. It uses rows ``[:m]`` of the first weight and bias and
    columns ``[:m]`` of the second weight; norm and last bias are always whole. Xavier-uniform weights, zero biases.
    With ``share=1``, the default, it is ``mlp``. Shared by several pairs, shallow first, it gives each of them the
    width of :func:`nested_widths`; :meth:`project` takes any.

    Source: ROCKET, arXiv 2602.17951 (Matryoshka-style activation), after Matryoshka representations,
    arXiv 2205.13147; the widths are in :func:`nested_widths`.
    """

    name = "nested"
    shallow_first: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = NestedOptions
    options: NestedOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        self.hidden = self.options.hidden or teacher_dim
        self.norm = nn.LayerNorm(student_dim) if self.options.norm else nn.Identity()
        self.fc1 = xavier(nn.Linear(student_dim, self.hidden))
        self.fc2 = xavier(nn.Linear(self.hidden, teacher_dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.project(tokens, max(1, int(self.options.share * self.hidden)))

    def forward_shared(self, tokens: Tensor, mask: Tensor, index: int, count: int) -> Tensor:
        return self.project(tokens, nested_widths(count, self.hidden, self.options.smallest)[index])

    def project(self, tokens: Tensor, units: int) -> Tensor:
        """Project with the first ``units`` hidden units.

        Raises:
            ConfigError: There are not that many.
        """
        if not 1 <= units <= self.hidden:
            raise ConfigError(f"{units} of {self.hidden} hidden units.", f"Give 1 to {self.hidden}.")
        inner = recompute(lambda x: F.linear(self.norm(x), self.fc1.weight[:units], self.fc1.bias[:units]), tokens)
        return recompute(lambda x: F.linear(F.gelu(x), self.fc2.weight[:, :units], self.fc2.bias), inner)
