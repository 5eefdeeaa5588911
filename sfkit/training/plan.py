"""From the resolved arguments of ``wrap`` to pairs of modules and the configuration that describes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfkit.config import SpatialForcingConfig, StudentLayer, one_or_several
from sfkit.errors import ConfigError
from sfkit.factory.components import (
    ComponentLike,
    build_objective,
    build_projector,
    build_schedule,
    build_teacher,
    build_transforms,
)
from sfkit.factory.resolve import read_pairs
from sfkit.objectives.base import Objective
from sfkit.policies.base import PolicyAdapter
from sfkit.projectors.base import Projector
from sfkit.schedules.base import Product
from sfkit.teachers.base import Teacher
from sfkit.training.pair import AlignmentPair
from sfkit.training.taps import Attention, TapSite, site_of
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.transforms.base import Transform
from sfkit.utils.runtime import own_rng

#: Keeps the first weights of an objective's head apart from those of the projectors, which count up from the seed.
_HEAD_SEEDS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Everything that the training step is made of."""

    config: SpatialForcingConfig
    adapter: PolicyAdapter
    pairs: Sequence[AlignmentPair]
    runners: Sequence[TeacherRunner]
    schedule: Product


def make_plan(adapter: PolicyAdapter, arguments: Mapping[str, Any]) -> Plan:
    """Build the components, check layers and widths, and record the configuration.

    Args:
        adapter: Of the policy.
        arguments: Of :meth:`sfkit.SpatialForcing.wrap`, with its defaults filled in.

    Raises:
        ConfigError: Neither or both of ``teacher`` and ``pairs``, or a layer, width or setting is not valid.
    """
    requested = read_pairs(arguments)
    _refuse_shared_instances(requested, arguments)
    objective, schedule = build_objective(arguments["objective"]), build_schedule(arguments["schedule"])
    runners: list[TeacherRunner] = []
    pairs = [_build_pair(adapter, own, arguments, runners, objective) for own in requested]
    features = [(own, pair) for own, pair in zip(requested, pairs, strict=True) if not pair.reads_attention]
    if not features and arguments["transforms"]:
        raise ConfigError("There are transforms, and no pair compares features.", "Leave transforms out.")
    _connect(adapter, features, arguments)
    common = [pair for own, pair in features if own["projector"] is None]
    chains = [pair.transform_specs for own, pair in features if own["transforms"] is None]
    fields = SpatialForcingConfig.model_fields
    values = {
        **{name: value for name, value in arguments.items() if name in fields},
        "adapter": adapter.spec,
        "pairs": [
            pair.config([name for name in ("objective", "projector", "transforms") if own[name] is not None])
            for own, pair in zip(requested, pairs, strict=True)
        ],
        "objective": objective.spec,
        "projector": common[0].projector_spec if common else arguments["projector"],
        "transforms": chains[0] if chains else arguments["transforms"],
        "schedule": [item.spec for item in schedule],
    }
    config = SpatialForcingConfig.parse("SpatialForcing", values)
    recompute = ("selective" if len(pairs) > 1 else "none") if config.recompute == "auto" else config.recompute
    for pair in pairs:
        pair.recompute = recompute
    return Plan(config, adapter, pairs, runners, schedule)


def _build_pair(
    adapter: PolicyAdapter,
    own: Mapping[str, Any],
    arguments: Mapping[str, Any],
    runners: list[TeacherRunner],
    common: Objective,
) -> AlignmentPair:
    """A pair without projector; its teacher is in ``runners`` from then on."""
    runner = _runner_of(own["teacher"], runners)
    teacher_layer = _teacher_layer(runner.teacher, own["teacher_layer"])
    objective = common if own["objective"] is None else build_objective(own["objective"])
    site = _site(adapter, own["student_layer"], objective)
    transforms: Sequence[Transform] = ()
    head = None
    if isinstance(site, Attention):
        if own["projector"] is not None or own["transforms"] is not None:
            raise ConfigError(
                f"Objective {objective.name!r} compares queries and keys as they are.",
                "Leave projector and transforms out of its pairs.",
            )
        student = adapter.attention_heads(site.student_layer)
        head = objective.attention_head(student, runner.teacher.attention_heads(teacher_layer))
    else:
        chain = arguments["transforms"] if own["transforms"] is None else own["transforms"]
        transforms = build_transforms(chain, runner.teacher.dim(teacher_layer))
    return AlignmentPair(
        None,
        objective,
        transforms=transforms,
        head=head,
        site=site,
        runner=runner,
        teacher_layer=teacher_layer,
        weight=own["weight"],
        future=own["future"],
    )


def _connect(
    adapter: PolicyAdapter, features: Sequence[tuple[Mapping[str, Any], AlignmentPair]], arguments: Mapping[str, Any]
) -> None:
    """Give each pair its projector and what its objective trains."""
    seed, common = arguments["seed"], arguments["projector"]
    widths = [(pair.site.width(adapter), pair.target_dim) for _, pair in features]
    shared = _shared(common, [pair for _, pair in features], widths, seed) if arguments["shared_projector"] else None
    for index, (own, pair) in enumerate(features):
        if shared is None:
            name = common if own["projector"] is None else own["projector"]
            pair.connect(build_projector(name, *widths[index], seed + index))
        else:
            pair.connect(shared, (index, len(features)))
        with own_rng(seed=seed + index + _HEAD_SEEDS):
            pair.head = pair.objective.head(widths[index][1])


def _refuse_shared_instances(requested: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> None:
    shared, several = arguments["shared_projector"], len(requested) > 1
    if shared and any(own["projector"] is not None for own in requested):
        raise ConfigError(
            "With shared_projector=True no pair can have a projector of its own.", "Take it out of the pairs."
        )
    if isinstance(arguments["projector"], Projector) and several and not shared:
        raise ConfigError(
            "A projector instance serves one pair only.",
            "Give its name: each pair gets its own; or let all of them share it, with shared_projector=True.",
        )
    if several and any(isinstance(transform, Transform) for transform in one_or_several(arguments["transforms"])):
        raise ConfigError("A transform instance serves one pair only.", "Give its name: each pair gets its own.")


def _shared(
    projector: ComponentLike | Projector,
    pairs: Sequence[AlignmentPair],
    widths: Sequence[tuple[int, int]],
    seed: int,
) -> Projector | None:
    """One projector for all pairs that compare features; None if there are none."""
    if not pairs:
        return None
    if len(set(widths)) > 1:
        found = ", ".join(f"{student} to {teacher}" for student, teacher in dict.fromkeys(widths))
        raise ConfigError(
            f"One projector cannot serve pairs of different widths: {found} channels.",
            "Give shared_projector=False, or bring the targets to one width with a transform.",
        )
    core = build_projector(projector, *widths[0], seed)
    layers = [pair.site.student_layer for pair in pairs]
    numbers = [-1 if isinstance(layer, str) else layer for layer in layers]
    if core.shallow_first and any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ConfigError(
            f"Projector {core.name!r} gives deeper pairs more hidden units, but the student layers are "
            f"{', '.join(map(str, layers))}.",
            "List the pairs from shallow to deep, each student layer once.",
        )
    return core


def _runner_of(value: ComponentLike | Teacher, runners: list[TeacherRunner]) -> TeacherRunner:
    """One runner for each distinct teacher, so that one run serves all of its pairs."""
    teacher = build_teacher(value)
    named = not isinstance(value, Teacher)
    for runner in runners:
        if runner.teacher is teacher or (named and runner.teacher.spec == teacher.spec):
            return runner
    runners.append(TeacherRunner(teacher))
    return runners[-1]


def _site(adapter: PolicyAdapter, student_layer: StudentLayer | None, objective: Objective) -> TapSite:
    layer = adapter.default_student_layer if student_layer is None else student_layer
    site = site_of(layer)
    site.tap(adapter)  # out of range, or no such place
    if objective.reads != "attention":
        return site
    if isinstance(layer, str) or layer == 0:
        raise ConfigError(
            f"Objective {objective.name!r} reads the attention of a block, and there is none at {layer!r}.",
            f"Blocks are 1 to {adapter.num_layers}.",
        )
    return Attention(layer)


def _teacher_layer(teacher: Teacher, layer: int | None) -> int:
    layer = teacher.default_layer if layer is None else layer
    if not 1 <= layer <= teacher.num_layers:
        raise ConfigError(
            f"Teacher layer {layer} is out of range for teacher {teacher.name!r}.",
            f"Its layers are 1 to {teacher.num_layers}.",
        )
    return layer
