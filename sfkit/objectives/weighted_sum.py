"""Several objectives in one, each with a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError
from sfkit.objectives.base import Objective
from sfkit.registry.component import AnyOptions
from sfkit.registry.registry import default_registry


class Term(Options):
    """One summand; ``("cosine", 0.5)`` is short for ``{"objective": "cosine", "weight": 0.5}``."""

    objective: ComponentSpec = Field(description="Name, or name with options.")
    weight: float = Field(default=1.0, ge=0, description="Its factor.")

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        if isinstance(value, tuple | list) and len(value) == 2:
            return {"objective": value[0], "weight": value[1]}
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _read_component(cls, value: Any) -> Any:
        return ComponentSpec.of(value)


class SumOptions(Options):
    """Options of :class:`SumObjective`."""

    terms: tuple[Term, ...] = Field(min_length=1, description="Objectives and their weights.")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not any(term.weight for term in self.terms):
            raise ValueError("all weights are 0: nothing would be aligned")
        return self


class SumObjective(Objective):
    """``sum_k weight_k * objective_k``, for each sample; the weights are taken as they are, not made to add up to 1.

    ``objective=("sum", {"terms": [("cosine", 1.0), (("relational", {"scope": "all"}), 0.5)]})``. A term of weight 0 is
    not computed. ``(b, v, gh, gw, d)`` twice to ``(b,)``.

    Raises:
        ConfigError: No term, a weight that is negative or NaN, weights that are all 0, or a name that is no objective.
    """

    name = "sum"
    Options: ClassVar[type[Options]] = SumOptions
    options: SumOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        self.terms = tuple((term.weight, _build(term.objective)) for term in self.options.terms if term.weight)

    def head(self, dim: int) -> nn.Module | None:
        heads = {str(index): term.head(dim) for index, (_, term) in enumerate(self.terms)}
        found = {index: head for index, head in heads.items() if head is not None}
        return nn.ModuleDict(found) if found else None

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return self.with_head(student, teacher, mask, None)

    def with_head(self, student: Tensor, teacher: Tensor, mask: Tensor, head: nn.Module | None) -> Tensor:
        heads = dict(head.items()) if isinstance(head, nn.ModuleDict) else {}
        losses = [
            weight * term.with_head(student, teacher, mask, heads.get(str(index)))
            for index, (weight, term) in enumerate(self.terms)
        ]
        return torch.stack(losses).sum(0)

    @property
    def has_collectives(self) -> bool:
        return any(term.has_collectives for _, term in self.terms)

    def participate_without_data(self) -> None:
        for _, term in self.terms:
            term.participate_without_data()


def _build(spec: ComponentSpec) -> Objective:
    entry = default_registry().get("objective", spec.name)
    factory: Callable[[Any], Any] = entry.load()
    objective = factory(entry.options_of(spec.name, spec.options))
    if not isinstance(objective, cast("type[Any]", Objective)):
        raise ConfigError(
            f"{spec.name!r} was registered as an objective but is a {type(objective).__name__}.",
            f"This is a fault of {entry.distribution}.",
        )
    if objective.reads != "features":
        raise ConfigError(
            f"Objective {spec.name!r} reads {objective.reads}: it cannot stand in a sum of what reads features.",
            "Give it pairs of its own; the losses of pairs are added with their weights.",
        )
    return cast("Objective", objective)
