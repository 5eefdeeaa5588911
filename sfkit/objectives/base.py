"""The objective interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit.config import ComponentSpec
from sfkit.registry.component import AnyOptions, Configurable

#: Smaller norms are raised to it.
_SMALLEST = 1e-6


class Objective(Configurable, ABC):
    """A distance between projected student tokens and teacher features, one value for each sample.

    Authors set ``name`` and write ``__call__``. An objective with parameters of its own also writes ``head`` and
    ``with_head``.

    Attributes:
        reads: Class attribute: what a pair with this objective compares. ``features``: the projected residual stream
            with the teacher's features. ``attention``: queries and keys of a block on both sides, unprojected.
    """

    reads: ClassVar[Literal["features", "attention"]] = "features"

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Compare the maps.

        Args:
            student: ``(b, v, gh, gw, d)`` float32 projected tokens, finite everywhere.
            teacher: ``(b, v, gh, gw, d)``, finite everywhere, without gradient.
            mask: ``(b, v, gh, gw)`` bool; tokens where it is False must not influence the result.

        Returns:
            ``(b,)`` losses; 0 with zero gradient for a sample without a valid token.
        """

    def head(self, dim: int) -> nn.Module | None:
        """The module that this objective trains for targets of ``dim`` channels; None by default.

        The core builds it once for each pair, under its own random generator, and keeps it in the pair's module: it is
        in the optimizer, in DDP's graph and in checkpoints.
        """
        return None

    def attention_head(self, student: tuple[int, int], teacher: tuple[int, int]) -> nn.Module:
        """The counterpart of :meth:`head` for objectives that read attention.

        Args:
            student: Number of heads, and channels of each.
            teacher: The same two numbers.
        """
        raise NotImplementedError(f"{type(self).__name__} reads attention but has no attention_head.")

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        """As a call, ``(b, v, gh, gw, d)`` maps to ``(b,)`` losses, with the pair's module from :meth:`head`."""
        return self(student, teacher, mask)

    def build_terms(self, build: Callable[[ComponentSpec], Objective]) -> None:
        """Build the objectives that this one consists of. The core calls it before the first use."""

    @property
    def has_collectives(self) -> bool:
        """Whether ranks exchange tokens in a call, so that backward must not recompute it."""
        return False

    def participate_without_data(self) -> None:
        """Join the collectives of one call, on a rank that does not align this pair in this step."""


def precise(x: Tensor) -> Tensor:
    """``(..., d)`` in float32; float64 stays float64."""
    # float64 is kept for gradient checks; half precision would lose small differences between patches.
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """``(..., d)`` over its Euclidean norm in the last dimension; the gradient at 0 is finite."""
    return F.normalize(precise(x), dim=-1, eps=_SMALLEST)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity ``(...,)`` of ``(..., d)`` vectors, in float32; 0, with a finite gradient, where one is 0.

    For large maps it takes less than half the time of torch's function: it divides numbers, not maps.
    """
    similarity: Tensor = _Cosine.apply(precise(a), precise(b))  # type: ignore[no-untyped-call]
    return similarity


class _Cosine(torch.autograd.Function):
    """``d cos / d a = b / (|a| |b|) - cos a / |a|^2``; the second term is 0 where the norm was raised."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """``(..., d)`` vectors to ``(...,)`` similarities."""
        norms = a.norm(dim=-1), b.norm(dim=-1)
        # Not einsum, although it is faster: it is a matrix product, to which the user's TF32 or bfloat16 applies.
        similarity: Tensor = (a * b).sum(-1) / (norms[0].clamp(min=_SMALLEST) * norms[1].clamp(min=_SMALLEST))
        ctx.save_for_backward(a, b, *norms, similarity)
        return similarity

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``(...,)`` gradient to those of both ``(..., d)`` vectors."""
        a, b, *norms, similarity = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: the saved norms have no history, so their part would be missing
            norms = [a.norm(dim=-1), b.norm(dim=-1)]
        raised = [norm.clamp(min=_SMALLEST) for norm in norms]
        across = (gradient / (raised[0] * raised[1])).unsqueeze(-1)
        gradients: list[Tensor | None] = [None, None]
        for index, (own, other) in enumerate(((a, b), (b, a))):
            if ctx.needs_input_grad[index]:
                along = torch.where(norms[index] < _SMALLEST, 0.0, gradient * similarity / raised[index].square())
                gradients[index] = (other * across).addcmul_(own, along.unsqueeze(-1), value=-1)
        return gradients[0], gradients[1]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean ``(b,)`` of ``(b, ...)`` values over the tokens where the mask is True; 0 where a sample has none."""
    # By selection: a product with the mask would turn a masked NaN into a NaN of the sum.
    kept = values.masked_fill(~mask, 0.0).flatten(1).sum(1)
    return kept / mask.flatten(1).sum(1).clamp(min=1)
