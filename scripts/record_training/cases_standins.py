"""Stand-ins of openpi's and OpenVLA's policies, in loops like those of their training scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from prismatic_loop import Heads, prismatic_batch, prismatic_loss
from recording import Training
from tiny_openpi import tiny_observation, tiny_openpi
from tiny_prismatic import add_film, tiny_oft, tiny_openvla

from sfkit import SpatialForcing
from sfkit.testing.tiny import PatchTeacher


def openpi(*, checkpointing: bool = False, missing: tuple[str, ...] = (), config: Any = None, **wrap: Any) -> Training:
    """A policy with a loss for each element, of which the loop takes the mean."""
    policy = tiny_openpi(**(config or {}))
    if checkpointing:
        policy.gradient_checkpointing_enable()
    policy.train()
    if "pairs" not in wrap:
        wrap = {"teacher": PatchTeacher(), "student_layer": 2, **wrap}
    SpatialForcing.wrap(policy, **wrap)
    return Training(policy, lambda step: policy(*tiny_observation(seed=step, missing=missing)).mean())


def openvla(head: Any = None, *, images: int = 1, film: bool = False, proprio: bool = True, **wrap: Any) -> Training:
    """OpenVLA's loop, or with a head OpenVLA-OFT's."""
    policy = tiny_openvla() if head is None else tiny_oft(images=images)
    if film:
        add_film(policy)
    policy.train()
    heads = None if head is None else Heads(policy.config)
    SpatialForcing.wrap(policy, **(wrap if "pairs" in wrap else {"teacher": PatchTeacher(), **wrap}))

    def loss(step: int) -> torch.Tensor:
        batch = prismatic_batch(policy.config, images=images, seed=step)
        found = {} if head is None else {"head": head, "film": film, "proprio": proprio}
        return prismatic_loss(policy, batch, heads=heads, **found)

    return Training(policy, loss, () if heads is None else (heads,))


def several() -> Any:
    teacher = PatchTeacher()
    return [(1, teacher, 1), (2, teacher, 2, 0.5), ("encoder", teacher, 3)]


CASES: dict[str, Callable[[], Training]] = {
    "openpi/pi0": openpi,
    "openpi/pi05": lambda: openpi(config={"pi05": True}),
    "openpi/pi0 checkpointing": lambda: openpi(checkpointing=True),
    "openpi/pi05 bfloat16": lambda: openpi(checkpointing=True, config={"pi05": True, "dtype": "bfloat16"}),
    "openpi/pi0 camera away": lambda: openpi(missing=("left_wrist_0_rgb",), student_layer="encoder"),
    "openpi/pi0 pairs": lambda: openpi(pairs=several(), weight="balance:0.2"),
    "openvla/openvla": openvla,
    "openvla/openvla pairs": lambda: openvla(pairs=several()),
    "openvla/oft l1 film": lambda: openvla("l1", images=2, film=True),
    "openvla/oft l1 pairs": lambda: openvla("l1", pairs=several(), weight="balance:0.2"),
    "openvla/oft diffusion": lambda: openvla("diffusion", images=3),
    "openvla/oft discrete": lambda: openvla("discrete", proprio=False),
}
