"""The projectors of the core, one class for each method."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field, field_validator
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.projectors.base import WIDEST, Projector, xavier
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.utils.recompute import recompute


def _norm(dim: int, on: bool) -> nn.Module:
    return nn.LayerNorm(dim) if on else nn.Identity()


class IdentityProjector(Projector):
    """The tokens as they are, so the policy itself must produce features like the teacher's.

    Raises:
        ConfigError: Student and teacher differ in width.
    """

    name = "identity"

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        if student_dim != teacher_dim:
            raise ConfigError(
                f"Projector {self.name!r}: the student has {student_dim} channels and the target {teacher_dim}.",
                'Choose another projector, such as "linear", or the transform "pca" or "random-projection".',
            )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` tokens, unchanged."""
        return tokens


class LinearOptions(Options):
    """Options of :class:`LinearProjector`."""

    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")
    bias: Harmless[bool] = Field(default=True, description="Add a bias.")


class LinearProjector(Projector):
    """``W h + b``; Xavier-uniform weights, zero bias.

    What it cannot map must be in the tokens themselves, which makes it the stricter test of the policy: compare the
    linear probes of Alain and Bengio, arXiv 1610.01644.
    """

    name = "linear"
    Options: ClassVar[type[Options]] = LinearOptions
    options: LinearOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        self.norm = _norm(student_dim, self.options.norm)
        self.fc = xavier(nn.Linear(student_dim, teacher_dim, bias=self.options.bias))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        projected: Tensor = self.fc(self.norm(tokens))
        return projected


class MLPOptions(Options):
    """Options of :class:`MLPProjector`."""

    hidden: int | None = Field(
        default=None, ge=1, le=WIDEST, description="Hidden width; the teacher's width by default."
    )
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
        self.norm = _norm(student_dim, self.options.norm)
        # Both layers exist before the first is initialized: another order would draw other weights from the seed.
        self.fc1, self.fc2 = nn.Linear(student_dim, hidden), nn.Linear(hidden, teacher_dim)
        self.act = nn.GELU()
        xavier(self.fc1)
        xavier(self.fc2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        # Each function ends on a matrix product, so that backward recomputes the norm or activation and no product.
        inner = recompute(lambda x: self.fc1(self.norm(x)), tokens)
        return recompute(lambda x: self.fc2(self.act(x)), inner)


class SiLUMLPOptions(Options):
    """Options of :class:`SiLUMLPProjector`."""

    hidden: int = Field(default=2048, ge=1, le=WIDEST, description="Width of both hidden layers.")
    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")


class SiLUMLPProjector(Projector):
    """``Linear -> SiLU -> Linear -> SiLU -> Linear``, Xavier-uniform weights, zero biases.

    Source: REPA, arXiv 2410.06940, section 3.3, and the repository sihyun-yu/REPA: hidden width 2048, no norm.
    """

    name = "mlp-silu"
    Options: ClassVar[type[Options]] = SiLUMLPOptions
    options: SiLUMLPOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        hidden = self.options.hidden
        self.norm = _norm(student_dim, self.options.norm)
        self.fc1 = xavier(nn.Linear(student_dim, hidden))
        self.fc2 = xavier(nn.Linear(hidden, hidden))
        self.fc3 = xavier(nn.Linear(hidden, teacher_dim))
        self.act = nn.SiLU()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        first = recompute(lambda x: self.fc1(self.norm(x)), tokens)
        second = recompute(lambda x: self.fc2(self.act(x)), first)
        return recompute(lambda x: self.fc3(self.act(x)), second)


class ConvOptions(Options):
    """Options of :class:`ConvProjector`."""

    kernel: int = Field(default=3, ge=1, le=15, description="Side of the kernel in patches; odd.")
    norm: Harmless[bool] = Field(default=False, description="LayerNorm on the student tokens first.")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("an even kernel has no center, and would shift the grid")
        return value


class ConvProjector(Projector):
    """One convolution with zero padding, view by view; weights and bias as torch initializes them.

    That is uniform, within ``1 / (kernel sqrt(student_dim))`` on either side: 0.58 of Xavier's bound for equal widths.
    The released code draws its linear layers anew, after Xavier, and no convolution.

    A masked token counts as zeros, like what lies beyond the border: nothing of it reaches its neighbors.

    Source: iREPA, arXiv 2512.10794 (3 x 3, padding 1, no norm), and the repository End2End-Diffusion/iREPA.
    """

    name = "conv"
    Options: ClassVar[type[Options]] = ConvOptions
    options: ConvOptions

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        kernel = self.options.kernel
        self.norm = _norm(student_dim, self.options.norm)
        self.conv = nn.Conv2d(student_dim, teacher_dim, kernel, padding=kernel // 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        # Masked once more after the norm, whose bias would otherwise leak from a masked token to its neighbors.
        clean = torch.where(mask.unsqueeze(-1), self.norm(tokens), 0.0)
        projected: Tensor = self.conv(clean.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return projected.reshape(*tokens.shape[:-1], self.teacher_dim)


class NestedOptions(Options):
    """Options of :class:`NestedProjector`."""

    hidden: int | None = Field(
        default=None, ge=1, le=WIDEST, description="All hidden units; the teacher's width by default."
    )
    share: float = Field(default=1.0, gt=0, le=1, description="Share of the hidden units of a pair's own projector.")
    smallest: float = Field(default=0.2, gt=0, le=1, description="Share for the first of several pairs that share one.")
    norm: Harmless[bool] = Field(default=True, description="LayerNorm on the student tokens first.")


def nested_widths(pairs: int, hidden: int, smallest: float = 0.2) -> tuple[int, ...]:
    """How many hidden units each pair uses, shallow to deep: evenly from ``smallest`` of them to all.

    Ten pairs of 2048 units: 409, 591, 773, 955, 1137, 1319, 1501, 1683, 1865, 2048. A single pair uses them all (the
    released ROCKET code gives it the smallest width, which cripples the baseline that ROCKET is compared with).

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
    # int and not round: the released code rounds down.
    return tuple(max(1, int(share * hidden)) for share in shares)


class NestedProjector(Projector):
    """``LayerNorm -> Linear -> GELU -> Linear`` on the first ``m`` of its hidden units.

    It uses rows ``[:m]`` of the first weight and bias and columns ``[:m]`` of the second weight; norm and last bias are
    always whole. Xavier-uniform weights, zero biases. With ``share=1``, the default, it is ``mlp``. Where several pairs
    share it, shallow first, each gets its width from :func:`nested_widths`; :meth:`project` takes any.

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
        self.norm = _norm(student_dim, self.options.norm)
        self.fc1 = xavier(nn.Linear(student_dim, self.hidden))
        self.fc2 = xavier(nn.Linear(self.hidden, teacher_dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``."""
        return self.project(tokens, max(1, int(self.options.share * self.hidden)))

    def forward_shared(self, tokens: Tensor, mask: Tensor, index: int, count: int) -> Tensor:
        """``(b, v, gh, gw, student_dim)`` to ``(..., teacher_dim)``, with the hidden units of this pair."""
        return self.project(tokens, nested_widths(count, self.hidden, self.options.smallest)[index])

    def project(self, tokens: Tensor, units: int) -> Tensor:
        """``(..., student_dim)`` to ``(..., teacher_dim)`` with the first ``units`` hidden units.

        Raises:
            ConfigError: There are not that many.
        """
        if not 1 <= units <= self.hidden:
            raise ConfigError(f"{units} of {self.hidden} hidden units.", f"Give 1 to {self.hidden}.")
        inner = recompute(lambda x: F.linear(self.norm(x), self.fc1.weight[:units], self.fc1.bias[:units]), tokens)
        return recompute(lambda x: F.linear(F.gelu(x), self.fc2.weight[:, :units], self.fc2.bias), inner)
