"""From the arguments of ``wrap`` to a plan: which depth is aligned with which layer of which teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sfkit.alignment.host import TeacherHost
from sfkit.building import (
    Named,
    build_objective,
    build_projector,
    build_schedule,
    build_teacher,
    build_transforms,
)
from sfkit.config import ComponentSpec, PairConfig, SpatialForcingConfig
from sfkit.errors import ConfigError
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.projectors.base import Projector
from sfkit.rng import own_rng
from sfkit.schedules.base import Product, Schedule
from sfkit.teachers.base import Teacher
from sfkit.transforms.base import Transform

#: Keeps the first weights of an objective's head apart from those of the projectors, which count up from the seed.
_HEAD_SEEDS = 1 << 20


@dataclass(frozen=True)
class Pair:
    """One alignment: a student depth, a teacher (index of its host), its layer, and a weight."""

    depth: int
    host: int
    layer: int
    weight: float


@dataclass(frozen=True)
class Plan:
    """Everything ``SpatialForcing`` is made of."""

    config: SpatialForcingConfig
    adapter: PolicyAdapter
    objective: Objective
    pairs: tuple[Pair, ...]
    hosts: tuple[TeacherHost, ...]
    projectors: tuple[Projector, ...]
    schedule: Product


@dataclass(frozen=True)
class _Wish:
    depth: int | None
    teacher: Any
    layer: int | None = None
    weight: float = 1.0


def make_plan(
    adapter: PolicyAdapter,
    *,
    teacher: Named | Teacher | None,
    depth: int | None,
    layer: int | None,
    weight: float,
    objective: Named | Objective,
    projector: Named | Projector,
    transforms: Sequence[Named | Transform] = (),
    schedule: Named | Schedule | Sequence[Named | Schedule] = (),
    pairs: Sequence[Any] | None,
    seed: int,
    self_check: bool,
) -> Plan:
    """Resolve names and defaults, and check depths, layers and widths.

    Raises:
        ConfigError: Neither or both of ``teacher`` and ``pairs``, or a depth or layer out of range.
    """
    wishes = _wishes(teacher, depth, layer, pairs)
    if isinstance(projector, Projector) and len(wishes) > 1:
        raise ConfigError("A projector instance serves one pair only.", "Give its name: each pair gets its own.")
    if any(isinstance(transform, Transform) for transform in transforms) and len(wishes) > 1:
        raise ConfigError("A transform instance serves one pair only.", "Give its name: each pair gets its own.")
    built_objective = build_objective(objective)
    built_schedule = build_schedule(schedule)
    hosts: list[TeacherHost] = []
    resolved: list[Pair] = []
    for wish in wishes:
        host = _host_for(wish.teacher, hosts)
        chosen = hosts[host].teacher
        resolved.append(Pair(_depth(adapter, wish.depth), host, _layer(chosen, wish.layer), wish.weight))
    projectors = tuple(
        _projector(
            projector, transforms, built_objective,
            dims=(adapter.dim(p.depth), hosts[p.host].teacher.dim(p.layer)), seed=seed + i,
        )
        for i, p in enumerate(resolved)
    )  # fmt: skip
    config = SpatialForcingConfig.parse(
        "SpatialForcing",
        {
            "adapter": adapter.spec,
            "pairs": [
                PairConfig(depth=p.depth, teacher=hosts[p.host].teacher.spec, layer=p.layer, weight=p.weight)
                for p in resolved
            ],
            "objective": built_objective.spec,
            "projector": projectors[0].spec,
            "transforms": [transform.spec for transform in projectors[0].target_transforms],
            "weight": weight,
            "schedule": [item.spec for item in built_schedule],
            "seed": seed,
            "self_check": self_check,
        },
    )
    return Plan(config, adapter, built_objective, tuple(resolved), tuple(hosts), projectors, built_schedule)


def _projector(
    projector: Named | Projector,
    transforms: Sequence[Named | Transform],
    objective: Objective,
    *,
    dims: tuple[int, int],
    seed: int,
) -> Projector:
    """The projector of one pair, with the transforms of its target and what the objective trains.

    Args:
        projector: As in :func:`make_plan`, and likewise the next.
        transforms: Of the target.
        objective: Whose head is kept with the projector.
        dims: Channels of the student's tokens and of the teacher's features.
        seed: Of the first weights.
    """
    student_dim, teacher_dim = dims
    steps = build_transforms(transforms, teacher_dim)
    target_dim = steps[-1].out_dim if steps else teacher_dim
    built = build_projector(projector, student_dim, target_dim, seed)
    built.target_transforms = nn.ModuleList(steps)
    with own_rng(seed=seed + _HEAD_SEEDS):
        built.objective_head = objective.head(target_dim)
    return built


def _wishes(teacher: Any, depth: int | None, layer: int | None, pairs: Sequence[Any] | None) -> list[_Wish]:
    if pairs is None:
        if teacher is None:
            raise ConfigError("No teacher.", 'Give one, for instance teacher="geometry", or pairs=[...].')
        return [_Wish(depth, teacher, layer)]
    if teacher is not None or depth is not None or layer is not None:
        raise ConfigError("pairs=[...] names depths, teachers and layers itself.", "Give either pairs or teacher.")
    if not pairs:
        raise ConfigError("pairs is empty.", "List at least one (depth, teacher, layer, weight).")
    return [_wish(pair) for pair in pairs]


def _wish(pair: Any) -> _Wish:
    if isinstance(pair, PairConfig):
        return _Wish(pair.depth, pair.teacher, pair.layer, pair.weight)
    try:
        return _Wish(**pair) if isinstance(pair, Mapping) else _Wish(*pair)
    except TypeError:
        raise ConfigError(
            f"Cannot read a pair from {pair!r}.",
            "Give (depth, teacher, layer, weight), or a mapping with those keys; layer and weight may be left out.",
        ) from None


def _host_for(value: Named | Teacher, hosts: list[TeacherHost]) -> int:
    """The host of this teacher: one for each distinct teacher, so that one run serves all of its pairs."""
    for index, host in enumerate(hosts):
        same_instance = isinstance(value, Teacher) and host.teacher is value
        if same_instance or (not isinstance(value, Teacher) and host.teacher.spec == _resolved_spec(value)):
            return index
    hosts.append(TeacherHost(build_teacher(value)))
    return len(hosts) - 1


def _resolved_spec(value: Named) -> ComponentSpec:
    return build_teacher(value).spec


def _depth(adapter: PolicyAdapter, depth: int | None) -> int:
    depth = adapter.default_depth if depth is None else depth
    if not 0 <= depth <= adapter.num_layers:
        raise ConfigError(
            f"Depth {depth} is out of range for {type(adapter.policy).__name__}.",
            f"Depths are 0 (embeddings) to {adapter.num_layers} (after the last block).",
        )
    return depth


def _layer(teacher: Teacher, layer: int | None) -> int:
    layer = teacher.default_layer if layer is None else layer
    if not 1 <= layer <= teacher.num_layers:
        raise ConfigError(
            f"Layer {layer} is out of range for teacher {teacher.name!r}.", f"Layers are 1 to {teacher.num_layers}."
        )
    return layer
