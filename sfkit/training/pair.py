"""From the arguments of ``wrap`` to a plan: which student layer is aligned with which layer of which teacher."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from sfkit.config import ComponentSpec, PairConfig, SpatialForcingConfig, StudentLayer, attention_of, block_of
from sfkit.errors import ConfigError
from sfkit.factory.components import (
    ComponentLike,
    build_objective,
    build_projector,
    build_schedule,
    build_teacher,
    build_transforms,
)
from sfkit.factory.resolve import Wish, read_wishes
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.projectors.base import Projector, SharedProjector, Unprojected
from sfkit.schedules.base import Product, Schedule
from sfkit.teachers.base import Teacher
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.transforms.base import Transform
from sfkit.utils.runtime import own_rng

_T = TypeVar("_T")

#: Keeps the first weights of an objective's head apart from those of the projectors, which count up from the seed.
_HEAD_SEEDS = 1 << 20


@dataclass(frozen=True)
class Pair:
    """One alignment.

    Attributes:
        student_layer: As given; or :func:`~sfkit.config.attention_of` a block, if the objective reads attention.
        host: Index of the teacher's host.
        teacher_layer: Of the teacher; its block, where the objective reads attention.
        weight: Within the alignment loss, as the user gave it.
        objective: Compares the two.
        future: How many steps ahead the frame is that the teacher sees.
    """

    student_layer: StudentLayer
    host: int
    teacher_layer: int
    weight: float
    objective: Objective
    future: int = 0

    @property
    def reads_attention(self) -> bool:
        """Whether queries and keys are compared, and no features."""
        return block_of(self.student_layer) is not None


def featured(pairs: Sequence[Pair], things: Sequence[_T]) -> list[_T]:
    """Of one thing for each pair, those of pairs that compare features."""
    return [thing for thing, pair in zip(things, pairs, strict=True) if not pair.reads_attention]


@dataclass(frozen=True)
class Plan:
    """Everything ``SpatialForcing`` is made of. Objectives and projectors of a pair stand at the pair's place."""

    config: SpatialForcingConfig
    adapter: PolicyAdapter
    objective: Objective
    pairs: tuple[Pair, ...]
    hosts: tuple[TeacherRunner, ...]
    projectors: tuple[Projector, ...]
    schedule: Product


def make_plan(
    adapter: PolicyAdapter,
    *,
    teacher: ComponentLike | Teacher | None,
    student_layer: StudentLayer | None,
    teacher_layer: int | None,
    objective: ComponentLike | Objective,
    projector: ComponentLike | Projector,
    transforms: Sequence[ComponentLike | Transform] = (),
    schedule: ComponentLike | Schedule | Sequence[ComponentLike | Schedule] = (),
    pairs: Sequence[Any] | None,
    seed: int,
    shared_projector: bool = False,
    **settings: Any,
) -> Plan:
    """Resolve names and defaults, and check layers and widths.

    Args:
        adapter: Of the policy.
        teacher: This and the following are as in :meth:`sfkit.SpatialForcing.wrap`.
        student_layer: Of a single pair.
        teacher_layer: Of a single pair.
        objective: Of the pairs that name none.
        projector: Likewise.
        transforms: Likewise.
        schedule: Of the weight.
        pairs: Several pairs.
        seed: Of first weights.
        shared_projector: Whether pairs share their projector.
        settings: Further fields of :class:`~sfkit.config.SpatialForcingConfig`, kept as they are.

    Raises:
        ConfigError: Neither or both of ``teacher`` and ``pairs``, or a layer, width or setting is not valid.
    """
    wishes = read_wishes(teacher, student_layer, teacher_layer, pairs)
    _refuse_shared_instances(wishes, projector, transforms, shared_projector)
    common, scheduled = build_objective(objective), build_schedule(schedule)
    hosts: list[TeacherRunner] = []
    resolved = [_resolve(adapter, wish, hosts, common) for wish in wishes]
    projectors = _projectors(
        adapter, [hosts[pair.host].teacher for pair in resolved], wishes, resolved,
        projector=projector, transforms=transforms, seed=seed, shared=shared_projector,
    )  # fmt: skip
    records = [
        _record(wish, pair, hosts[pair.host].teacher, built)
        for wish, pair, built in zip(wishes, resolved, projectors, strict=True)
    ]
    if transforms and all(pair.reads_attention for pair in resolved):
        raise ConfigError("There are transforms, and no pair compares features.", "Leave transforms out.")
    with_features = featured(resolved, list(zip(wishes, projectors, strict=True)))
    usual = [built.spec for wish, built in with_features if wish.projector is None]
    chains: list[Any] = [built.target_transforms for wish, built in with_features if wish.transforms is None]
    values = {
        **settings,
        "adapter": adapter.spec,
        "pairs": records,
        "objective": common.spec,
        "projector": usual[0] if usual else projector,
        "transforms": [step.spec for step in chains[0]] if chains else transforms,
        "schedule": [item.spec for item in scheduled],
        "seed": seed,
        "shared_projector": shared_projector,
    }
    config = SpatialForcingConfig.parse("SpatialForcing", values)
    return Plan(config, adapter, common, tuple(resolved), tuple(hosts), projectors, scheduled)


def _projectors(
    adapter: PolicyAdapter,
    teachers: Sequence[Teacher],
    wishes: Sequence[Wish],
    pairs: Sequence[Pair],
    *,
    projector: ComponentLike | Projector,
    transforms: Sequence[ComponentLike | Transform],
    seed: int,
    shared: bool,
) -> tuple[Projector, ...]:
    """The projector of each pair, with the transforms of its target and what its objective trains."""
    if any(pair.reads_attention for pair in pairs):
        return _beside_attention(
            adapter, teachers, wishes, pairs, projector=projector, transforms=transforms, seed=seed, shared=shared
        )
    chains, widths = [], []
    for wish, pair, teacher in zip(wishes, pairs, teachers, strict=True):
        target = teacher.dim(pair.teacher_layer)
        chain = build_transforms(transforms if wish.transforms is None else wish.transforms, target)
        chains.append(chain)
        widths.append((_width(adapter, pair.student_layer), chain[-1].out_dim if chain else target))
    if shared:
        built = _shared(projector, pairs, widths, seed)
    else:
        own = [projector if wish.projector is None else wish.projector for wish in wishes]
        built = tuple(
            build_projector(name, *width, seed + index)
            for index, (name, width) in enumerate(zip(own, widths, strict=True))
        )
    for index, (one, pair) in enumerate(zip(built, pairs, strict=True)):
        one.target_transforms = nn.ModuleList(chains[index])
        with own_rng(seed=seed + index + _HEAD_SEEDS):
            one.objective_head = pair.objective.head(widths[index][1])
    return built


def _beside_attention(
    adapter: PolicyAdapter, teachers: Sequence[Teacher], wishes: Sequence[Wish], pairs: Sequence[Pair], **common: Any
) -> tuple[Projector, ...]:
    """As :func:`_projectors`, where some pairs read attention: these have neither projector nor transforms."""
    chosen = featured(pairs, range(len(pairs)))
    own = [featured(pairs, teachers), featured(pairs, wishes), featured(pairs, pairs)]
    built = _projectors(adapter, *own, **common) if chosen else ()  # type: ignore[arg-type]
    found: dict[int, Projector] = dict(zip(chosen, built, strict=True))
    for index, (wish, pair, teacher) in enumerate(zip(wishes, pairs, teachers, strict=True)):
        block = block_of(pair.student_layer)
        if block is None:
            continue
        if wish.projector is not None or wish.transforms is not None:
            raise ConfigError(
                f"Objective {pair.objective.name!r} compares queries and keys as they are.",
                "Leave projector and transforms out of its pairs.",
            )
        sides = adapter.attention_heads(block), teacher.attention_heads(pair.teacher_layer)
        found[index] = Unprojected(2 * math.prod(sides[0]), 2 * math.prod(sides[1]))
        found[index].objective_head = pair.objective.attention_head(*sides)
    return tuple(found[index] for index in range(len(pairs)))


def _resolve(adapter: PolicyAdapter, wish: Wish, hosts: list[TeacherRunner], common: Objective) -> Pair:
    host = _host_for(wish.teacher, hosts)
    teacher_layer = _teacher_layer(hosts[host].teacher, wish.teacher_layer)
    objective = common if wish.objective is None else build_objective(wish.objective)
    student_layer = _student_layer(adapter, wish.student_layer)
    if objective.reads == "attention":
        if isinstance(student_layer, str) or student_layer == 0:
            raise ConfigError(
                f"Objective {objective.name!r} reads the attention of a block, and there is none at {student_layer!r}.",
                f"Blocks are 1 to {adapter.num_layers}.",
            )
        student_layer = attention_of(student_layer)
    return Pair(student_layer, host, teacher_layer, wish.weight, objective, wish.future)


def _record(wish: Wish, pair: Pair, teacher: Teacher, projector: Projector) -> dict[str, Any]:
    """The pair as it is saved; what it shares with the others stands in the run's own fields."""
    chain: Any = projector.target_transforms
    return {
        "student_layer": block_of(pair.student_layer) or pair.student_layer,
        "teacher": teacher.spec,
        "teacher_layer": pair.teacher_layer,
        "weight": pair.weight,
        "future": pair.future,
        "objective": None if wish.objective is None else pair.objective.spec,
        "projector": None if wish.projector is None else projector.spec,
        "transforms": None if wish.transforms is None else [step.spec for step in chain],
    }


def _refuse_shared_instances(wishes: Sequence[Wish], projector: Any, transforms: Any, shared: bool) -> None:
    if shared and any(wish.projector is not None for wish in wishes):
        raise ConfigError(
            "With shared_projector=True no pair can have a projector of its own.", "Take it out of the pairs."
        )
    if isinstance(projector, Projector) and len(wishes) > 1 and not shared:
        raise ConfigError(
            "A projector instance serves one pair only.",
            "Give its name: each pair gets its own; or let all of them share it, with shared_projector=True.",
        )
    if len(wishes) > 1 and any(isinstance(transform, Transform) for transform in transforms):
        raise ConfigError("A transform instance serves one pair only.", "Give its name: each pair gets its own.")


def _shared(
    projector: ComponentLike | Projector, pairs: Sequence[Pair], widths: Sequence[tuple[int, int]], seed: int
) -> tuple[Projector, ...]:
    """One projector, as each pair sees it."""
    if len(set(widths)) > 1:
        found = ", ".join(f"{student} to {teacher}" for student, teacher in dict.fromkeys(widths))
        raise ConfigError(
            f"One projector cannot serve pairs of different widths: {found} channels.",
            "Give shared_projector=False, or bring the targets to one width with a transform.",
        )
    core = build_projector(projector, *widths[0], seed)
    student_layers = [-1 if isinstance(pair.student_layer, str) else pair.student_layer for pair in pairs]
    if core.shallow_first and any(a >= b for a, b in itertools.pairwise(student_layers)):
        raise ConfigError(
            f"Projector {core.name!r} gives deeper pairs more hidden units, but the student layers are "
            f"{', '.join(str(pair.student_layer) for pair in pairs)}.",
            "List the pairs from shallow to deep, each student layer once.",
        )
    return tuple(SharedProjector(core, index, len(pairs)) for index in range(len(pairs)))


def _host_for(value: ComponentLike | Teacher, hosts: list[TeacherRunner]) -> int:
    """The host of this teacher: one for each distinct teacher, so that one run serves all of its pairs."""
    for index, host in enumerate(hosts):
        same_instance = isinstance(value, Teacher) and host.teacher is value
        if same_instance or (not isinstance(value, Teacher) and host.teacher.spec == _resolved_spec(value)):
            return index
    hosts.append(TeacherRunner(build_teacher(value)))
    return len(hosts) - 1


def _resolved_spec(value: ComponentLike) -> ComponentSpec:
    return build_teacher(value).spec


def _student_layer(adapter: PolicyAdapter, student_layer: StudentLayer | None) -> StudentLayer:
    student_layer = adapter.default_student_layer if student_layer is None else student_layer
    if isinstance(student_layer, str):
        PairConfig.parse("the pair", {"student_layer": student_layer, "teacher": "", "teacher_layer": 1})
        adapter.encoder_tap()
        return student_layer
    if not 0 <= student_layer <= adapter.num_layers:
        raise ConfigError(
            f"Student layer {student_layer} is out of range for {type(adapter.policy).__name__}.",
            f"Student layers are 0 (embeddings) to {adapter.num_layers} (after the last block).",
        )
    return student_layer


def _width(adapter: PolicyAdapter, student_layer: StudentLayer) -> int:
    return adapter.encoder_dim() if isinstance(student_layer, str) else adapter.dim(student_layer)


def _teacher_layer(teacher: Teacher, layer: int | None) -> int:
    layer = teacher.default_layer if layer is None else layer
    if not 1 <= layer <= teacher.num_layers:
        raise ConfigError(
            f"Teacher layer {layer} is out of range for teacher {teacher.name!r}.",
            f"Its layers are 1 to {teacher.num_layers}.",
        )
    return layer
