"""The hooks that a plugin may implement: the whole extension surface.

A plugin is the module that an entry point of group ``sfkit`` names. It says ``SFKIT_API = 1`` and implements any of
these hooks with ``@sfkit.hookimpl``. Keep its imports light: register ``"package.module:Class"``, which is imported on
first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pluggy

hookspec = pluggy.HookspecMarker("sfkit")
hookimpl = pluggy.HookimplMarker("sfkit")
"""Decorator that marks a function of a plugin as the implementation of the hook of its name."""


class Register(Protocol):
    """``register(target, name=..., summary=..., ...)``; the keywords are the fields of ``Entry``, see there."""

    def __call__(self, target: object, **metadata: Any) -> None: ...


@hookspec
def register_teachers(register: Register) -> None:
    """Register frozen feature extractors (subclasses of :class:`sfkit.Teacher`)."""


@hookspec
def register_policies(register: Register) -> None:
    """Register policy adapters (subclasses of :class:`sfkit.PolicyAdapter`), with ``handles`` class-name patterns.

    ``aligned``, ``verified`` and ``trains`` fill its line in the support table. A policy that cannot be aligned is
    registered with None as its target, and ``reason``.
    """


@hookspec
def register_objectives(register: Register) -> None:
    """Register alignment objectives (subclasses of :class:`sfkit.Objective`)."""


@hookspec
def register_projectors(register: Register) -> None:
    """Register projectors (subclasses of :class:`sfkit.Projector`)."""


@hookspec
def register_transforms(register: Register) -> None:
    """Register target transforms (subclasses of :class:`sfkit.transforms.base.Transform`)."""


@hookspec
def register_schedules(register: Register) -> None:
    """Register schedules of the weight (subclasses of :class:`sfkit.schedules.base.Schedule`)."""


@hookspec
def register_presets(register: Register) -> None:
    """Register presets (:class:`sfkit.presets.Preset` objects, ``"package.module:NAME"``)."""


@hookspec
def register_parity(register: Register) -> None:
    """Register readers of fixtures, by the ``model`` they name, for the ``sfkit parity`` of sfkit-backbones.

    They are subclasses of ``sfkit_backbones.parity.Parity``.
    """


@hookspec
def register_commands(register: Register) -> None:
    """Register ``sfkit`` subcommands: functions whose annotated parameters become options, or a ``typer.Typer``."""


#: What this project's plugins register, and the extra that brings it: for those who have not installed it.
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "command": {"demo": "demo", "inspect": "tools", "rank-layers": "tools", "parity": "backbones"}
    | {"openpi-export": "openpi", "libero": "libero", "store": "store"},
    "policy": {"openpi": "openpi", "openvla": "openvla"} | dict.fromkeys((
        "act", "diffusion", "evo1", "groot", "molmoact2", "pi0", "pi05", "pi0_fast", "smolvla", "vla_jepa", "wall_x",
        "xvla"), "lerobot"),
    "teacher": {"dust3r": "dust3r", "hf": "transformers", "mast3r": "dust3r", "store": "store", "vggt": "vggt"}
    | {"vggt-commercial": "vggt"}
    | dict.fromkeys(("da3-small", "da3-base", "da3-large", "da3-giant"), "depth-anything"),
}  # fmt: skip
#: Networks that people name without a repository.
REPOSITORIES = {"dinov2": "hf:facebook/dinov2-base", "siglip": "hf:google/siglip-base-patch16-224"}
