"""Record a fixture of a teacher's own backbone with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from sfkit.errors import ConfigError
from sfkit.teachers.base import Teacher
from sfkit.testing.checks import float64, widened
from sfkit.utils.runtime import own_rng
from sfkit_backbones.parity.base import BackboneParity
from sfkit_backbones.parity.comparing import parity_of
from sfkit_backbones.parity.fixture import Case, save_fixture
from sfkit_backbones.randomize import randomize
from sfkit_backbones.teacher import BackboneTeacher


@torch.inference_mode()
def record(teacher: Teacher, path: str | Path, *, seed: int = 0, stream: float = 1.0) -> None:
    """Write a fixture of ``teacher``'s backbone with random weights.

    The outputs are computed in float64 and rounded, so that the file is the same on every processor.

    Args:
        teacher: A teacher with a registered family of fixtures; best with ``config="tiny"``.
        path: The file to write; must not exist.
        seed: Seed of weights and inputs.
        stream: Scale of everything that enters the residual stream. At 0.003 the inputs of the norms come near their
            epsilon, so that a wrong epsilon shows.

    Raises:
        ConfigError: The teacher has no registered family.
        CheckpointError: The file exists.
    """
    reader = parity_of(teacher.family) if isinstance(teacher, BackboneTeacher) and teacher.family else None
    if not isinstance(teacher, BackboneTeacher) or not isinstance(reader, BackboneParity):
        raise ConfigError(
            f"Teacher {teacher.name!r} belongs to no family that `sfkit parity` knows.",
            "Register a BackboneParity under its name (hook register_parity), or write the file with save_fixture.",
        )
    backbone = randomize(teacher.build(), seed, stream=stream).eval()
    with own_rng(seed=seed + 1):
        examples = reader.examples(teacher.backbone_config)
    with float64():
        exact = widened(backbone)
        outputs = {
            name: reader.run(exact, name, widened(inputs), wanted) for name, (inputs, wanted) in examples.items()
        }
    cases = {
        name: Case(inputs, {key: value.float() for key, value in outputs[name].items()})
        for name, (inputs, _) in examples.items()
    }
    state = {reader.prefix + key: value for key, value in backbone.state_dict().items()}
    save_fixture(path, {"model": teacher.family, **reader.describe(teacher.backbone_config)}, state, cases)
