"""Parity of the alignment loss: the presets of Spatial Forcing against records of the released code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from sfkit import SpatialForcing
from sfkit.config import ComponentSpec, Options
from sfkit.errors import CheckpointError
from sfkit.policies.base import AdapterOptions, ForwardCall, PolicyAdapter, TapPoint
from sfkit.policies.tokens import cut
from sfkit.presets import Preset
from sfkit.registry.registry import default_registry
from sfkit.teachers.base import Teacher
from sfkit.transforms.base import Transform
from sfkit.views.types import FeatureMap, Views
from sfkit_backbones.parity.base import Parity
from sfkit_backbones.parity.fixture import Case, Fixture


@dataclass(frozen=True)
class _Recipe:
    """A recipe of the released code.

    Attributes:
        preset: Name of the preset that reproduces it.
        blocks: Number of blocks of its policy.
        first: Index of the first recorded token, counted from the first visual token.
    """

    preset: str
    blocks: int
    first: int


_OPENVLA = _Recipe("spatial-forcing-openvla", 32, 1)
_PI0 = _Recipe("spatial-forcing-pi0", 18, 0)


class AlignmentLossParity(Parity):
    """Wraps a policy and a teacher that return recorded tensors with the preset of the recipe.

    Settings of a case: ``views``, ``teacher_grid`` and ``student_grid`` (sides), ``target_pe`` (whether the position
    code is added) and ``masked``: the pi0 recipe masks tokens, the OpenVLA recipe does not. Inputs:
    ``student_hidden (b, n, d)``, ``teacher_features (b, v, s, d)``, ``mask (b, n)`` bool and ``projector.<key>``.
    Outputs: ``target``, ``loss``, ``grad_hidden`` and ``grad_projector.<key>``.
    """

    def outputs(self, fixture: Fixture) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Wrap, run and differentiate each case.

        Raises:
            CheckpointError: A setting or an input is missing, or has a wrong type or shape.
        """
        for name, case in fixture.cases.items():
            try:
                with torch.enable_grad():
                    found = _run(case)
            except (KeyError, TypeError, RuntimeError) as error:
                raise CheckpointError(
                    f"{fixture.path}: case {name!r} is no record of an alignment loss: {type(error).__name__}: {error}."
                ) from error
            yield name, found


def _run(case: Case) -> dict[str, Tensor]:
    recipe = _PI0 if case.settings["masked"] else _OPENVLA
    policy = _Policy(case, recipe)
    preset: Preset = default_registry().get("preset", recipe.preset).load()
    adapter = _Adapter(policy, preset.arguments_for(recipe.blocks).get("adapter"))
    changes: dict[str, Any] = {} if case.settings["target_pe"] else {"transforms": _without_code(preset)}
    SpatialForcing.wrap(
        policy, _Teacher(case), adapter=adapter, preset=preset, weight=1.0, self_check=False, health={"every": 0},
        **changes,
    )  # fmt: skip
    handle = SpatialForcing.of(policy)
    assert handle is not None
    pair = handle.pairs[0]
    projector = pair.projector
    start = "projector."
    recorded = {_ours(key.removeprefix(start)): x for key, x in case.inputs.items() if key.startswith(start)}
    projector.load_state_dict({**projector.state_dict(), **recorded})
    loss = policy()["loss"]
    loss.backward()
    return {
        "target": _target(case, pair.transforms, torch.ones_like(policy.mask)).reshape(*policy.hidden.shape[:2], -1),
        "loss": loss.detach().reshape(1),
        "grad_hidden": _grad(policy.hidden),
        **{f"grad_{start}{_theirs(key)}": _grad(value) for key, value in projector.named_parameters()},
    }


@torch.no_grad()
def _target(case: Case, transforms: Iterable[Transform], wanted: Tensor) -> Tensor:
    """The target ``(b, v, gh, gw, d)`` of the tokens ``wanted``, ``(b, v, gh, gw)`` bool."""
    features = _teacher_map(case)
    for transform in transforms:
        features = transform(features, wanted)
    return features.values


def _grad(parameter: Tensor) -> Tensor:
    """Gradient of a parameter ``(...,)``; zeros where it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _ours(key: str) -> str:
    return key.removeprefix("vlm_")


def _theirs(key: str) -> str:
    return f"vlm_{key}" if key.startswith("norm.") else key


def _without_code(preset: Preset) -> list[ComponentSpec]:
    transforms = [ComponentSpec.of(item) for item in preset.arguments["transforms"]]
    return [item for item in transforms if item.name != "position-code"]


def _teacher_map(case: Case) -> FeatureMap:
    side, views = case.settings["teacher_grid"], case.settings["views"]
    features = case.inputs["teacher_features"]
    values = features.reshape(features.shape[0], views, side, side, -1)
    return FeatureMap(values, torch.ones(values.shape[:-1], dtype=torch.bool))


class _Policy(nn.Module):
    """A policy whose only parameter is the recorded hidden state, with an action loss of zero."""

    spatial_forcing: SpatialForcing

    def __init__(self, case: Case, recipe: _Recipe) -> None:
        super().__init__()
        hidden, side = case.inputs["student_hidden"], case.settings["student_grid"]
        self.hidden = nn.Parameter(hidden.clone())
        self.blocks, self.first = recipe.blocks, recipe.first
        shape = (hidden.shape[0], case.settings["views"], side, side)
        self.mask = case.inputs.get("mask", torch.ones(hidden.shape[:2], dtype=torch.bool)).reshape(shape)
        self.tapped = nn.Identity()

    def forward(self) -> dict[str, Tensor]:
        hidden = self.tapped(F.pad(self.hidden, (0, 0, self.first, 0)))
        return {"loss": 0.0 * hidden.sum()}


class _Adapter(PolicyAdapter):
    """Applies the token shift of the preset and the recorded mask."""

    name = "recorded"
    Options: ClassVar[type[Options]] = AdapterOptions
    options: AdapterOptions
    policy: _Policy

    @property
    def num_layers(self) -> int:
        return self.policy.blocks

    def dim(self, layer: int) -> int:
        return self.policy.hidden.shape[-1]

    def tap(self, layer: int) -> TapPoint:
        return TapPoint(self.policy.tapped, "tapped")

    def views(self, call: ForwardCall) -> Views:
        b, v, *size = self.policy.mask.shape
        names = tuple(f"view{index}" for index in range(v))
        return Views(torch.zeros(b, v, 3, *size), torch.ones(b, v, *size, dtype=torch.bool), names)

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """``(b, n, d)`` hidden states to a map ``(b, v, gh, gw, d)``."""
        mask = self.policy.mask
        tokens = cut(hidden, 0, mask[0].numel(), self.options.token_shift)
        return FeatureMap(tokens.reshape(*mask.shape, -1), mask)


class _Teacher(Teacher):
    """Returns the recorded features of VGGT's last layer, under its name: the presets require that teacher."""

    name = "vggt"
    license = "none: no weights"

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._map = _teacher_map(case)

    @property
    def num_layers(self) -> int:
        return 24

    def dim(self, layer: int) -> int:
        return self._map.values.shape[-1]

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        return [self._map for _ in layers]
