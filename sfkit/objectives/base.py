"""The objective interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.registry.component import AnyOptions, Configurable


class Objective(Configurable, ABC):
    """A distance between two feature grids, for each sample.

    Attributes:
        reads: Of the class: what a pair with this objective is made of. ``features``: the residual stream, projected,
            and the teacher's features; ``attention``: queries and keys of a block on either side, unprojected.
    """

    reads: ClassVar[Literal["features", "attention"]] = "features"

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Compare the maps.

        Args:
            student: ``(b, v, gh, gw, d)`` float32 projected tokens, finite everywhere.
            teacher: Same shape, finite everywhere, without gradient.
            mask: ``(b, v, gh, gw)`` bool; tokens where it is False must not influence the result.

        Returns:
            ``(b,)`` losses; 0 with zero gradient for a sample without a valid token.
        """

    def head(self, dim: int) -> nn.Module | None:
        """What this objective has to train itself, for targets of ``dim`` channels; None for most.

        The core builds it once for each pair, under its own random generator, and keeps it with the pair's projector:
        so it is in the optimizer, in DDP's graph and in checkpoints.
        """
        return None

    def attention_head(self, student: tuple[int, int], teacher: tuple[int, int]) -> nn.Module:
        """In the place of :meth:`head`, for objectives that read attention.

        Args:
            student: Heads, and channels of each.
            teacher: Likewise.
        """
        raise NotImplementedError(f"{type(self).__name__} reads attention but has no attention_head.")

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        """Compare the maps, given what :meth:`head` made for this pair; otherwise as a plain call."""
        return self(student, teacher, mask)

    @property
    def has_collectives(self) -> bool:
        """Whether ranks exchange tokens in a call, so that it must not be made again in the backward pass."""
        return False

    def participate_without_data(self) -> None:
        """Take part in what all ranks do together, for one pair that this rank does not align in this step."""


#: Norms below it count as this.
_SMALLEST = 1e-6


def precise(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """``x`` over its Euclidean norm in the last dimension; the gradient at 0 is finite."""
    return F.normalize(precise(x), dim=-1, eps=1e-6)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last dimension, in float32; 0, with a finite gradient, where a vector is 0.

    As torch's own, but for large maps in less than half of the time: it divides numbers, not maps.
    """
    similarity: Tensor = _Cosine.apply(precise(a), precise(b))  # type: ignore[no-untyped-call]
    return similarity


class _Cosine(torch.autograd.Function):
    """With ``d cos / d a = b / (|a| |b|) - cos a / |a|^2``, whose second term is 0 where the norm was raised."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        lengths = a.norm(dim=-1), b.norm(dim=-1)
        # No einsum, though faster: as a matrix product it would follow the user's choice of TF32 or bfloat16.
        similarity = (a * b).sum(-1) / (_raised(lengths[0]) * _raised(lengths[1]))
        ctx.save_for_backward(a, b, *lengths, similarity)
        return similarity

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b, *lengths, similarity = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what was kept has no history, and its part would be left out
            lengths = [a.norm(dim=-1), b.norm(dim=-1)]
        norms = [_raised(length) for length in lengths]
        across = (gradient / (norms[0] * norms[1])).unsqueeze(-1)
        found: list[Tensor | None] = [None, None]
        for index, (own, other) in enumerate(((a, b), (b, a))):
            if ctx.needs_input_grad[index]:
                along = torch.where(lengths[index] < _SMALLEST, 0.0, gradient * similarity / norms[index].square())
                found[index] = (other * across).addcmul_(own, along.unsqueeze(-1), value=-1)
        return found[0], found[1]


def _raised(length: Tensor) -> Tensor:
    return length.clamp(min=_SMALLEST)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(b, ...)`` values over the tokens where the mask is True; 0 where a sample has none."""
    kept = values.masked_fill(~mask, 0.0).flatten(1).sum(1)
    return kept / mask.flatten(1).sum(1).clamp(min=1)
