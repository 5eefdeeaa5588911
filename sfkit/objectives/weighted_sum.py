"""Several objectives in one, each with a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError
from sfkit.objectives.base import Objective


class Term(Options):
    """One summand; ``("cosine", 0.5)`` is short for ``{"objective": "cosine", "weight": 0.5}``."""

    objective: Annotated[ComponentSpec, BeforeValidator(ComponentSpec.of)] = Field(description="Name, or with options.")
    weight: float = Field(default=1.0, ge=0, description="Its factor.")

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: object) -> object:
        if isinstance(value, tuple | list) and len(value) == 2:
            return {"objective": value[0], "weight": value[1]}
        return value


class SumOptions(Options):
    """Options of :class:`SumObjective`."""

    terms: tuple[Term, ...] = Field(min_length=1, description="Objectives and their weights.")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not any(term.weight for term in self.terms):
            raise ValueError("all weights are 0: nothing would be aligned")
        return self


class SumObjective(Objective):
    """``sum_k weight_k * objective_k``, for each sample; the weights need not add up to 1.

    ``objective=("sum", {"terms": [("cosine", 1.0), (("relational", {"scope": "all"}), 0.5)]})``. A term of weight 0 is
    not computed.

    Attributes:
        terms: Weight and objective of each term; empty before :meth:`build_terms`.

    Raises:
        ConfigError: No term, a weight that is negative or NaN, weights that are all 0, a name that is no objective, or
            an objective that reads attention.
    """

    name = "sum"
    Options: ClassVar[type[Options]] = SumOptions
    options: SumOptions
    terms: tuple[tuple[float, Objective], ...] = ()

    def build_terms(self, build: Callable[[ComponentSpec], Objective]) -> None:
        built = [(term, build(term.objective)) for term in self.options.terms]
        # With the defaults of each objective: they are saved.
        terms = tuple(term.model_copy(update={"objective": objective.spec}) for term, objective in built)
        self.options = self.options.model_copy(update={"terms": terms})
        self.terms = tuple((term.weight, objective) for term, objective in built if term.weight)
        for _, term in self.terms:
            if term.reads != "features":
                raise ConfigError(
                    f"Objective {term.name!r} reads {term.reads}: it cannot stand in a sum of what reads features.",
                    "Give it pairs of its own; the losses of pairs are added with their weights.",
                )

    def head(self, dim: int) -> nn.Module | None:
        # By number and not by name: two terms may be the same objective with other options.
        heads = {str(index): term.head(dim) for index, (_, term) in enumerate(self.terms)}
        trained = {index: head for index, head in heads.items() if head is not None}
        return nn.ModuleDict(trained) if trained else None

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``, where no term has a head."""
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        """``(b, v, gh, gw, d)`` maps to ``(b,)``; ``head`` holds the terms' heads by their number."""
        if not self.terms:
            raise ConfigError(f"Objective {self.name!r} has no terms yet.", "Call build_terms(build_objective).")
        heads = dict(head.items()) if isinstance(head, nn.ModuleDict) else {}
        losses = [term.with_head(student, teacher, mask, heads.get(str(i))) for i, (_, term) in enumerate(self.terms)]
        return torch.stack([weight * loss for (weight, _), loss in zip(self.terms, losses, strict=True)]).sum(0)

    @property
    def has_collectives(self) -> bool:
        return any(term.has_collectives for _, term in self.terms)

    def participate_without_data(self) -> None:
        for _, term in self.terms:
            term.participate_without_data()
