"""Policies that encode each view by a tower of patches: its output, and frames that the policy itself is not given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfkit.policies.base import ForwardCall, TapPoint
from sfkit.policies.tokens import tower_tokens
from sfkit.views.geometry import on_device
from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.future_frames import at_future_frame
from sfkit_lerobot.prefix import PrefixAdapter


class TowerPrefixAdapter(PrefixAdapter):
    """Base of the adapters whose tower runs view by view, and whose processors leave other images as they are."""

    #: Path from the policy to the module that takes what the tower gives to the language model.
    connector_path: str

    @property
    @abstractmethod
    def vision_config(self) -> Any:
        """Of the tower, with ``hidden_size`` and ``patch_size``."""

    def _touch(self) -> None:
        super()._touch()
        self.encoder_tap()
        self.encoder_dim()

    def encoder_tap(self) -> TapPoint:
        return TapPoint(self.policy.get_submodule(self.connector_path), self.connector_path, all_calls=True)

    def encoder_dim(self) -> int:
        return int(self.vision_config.hidden_size)

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        patch = int(self.vision_config.patch_size)
        return tower_tokens(states, views, (views.size[0] // patch, views.size[1] // patch))

    def future_views(self, call: ForwardCall, steps: int) -> Views:
        """As :meth:`sfkit.policies.base.PolicyAdapter.future_views` says, from :class:`sfkit_lerobot.FutureFrames`.

        A future frame is taken as the camera saw it: LeRobot's normalizer knows the policy's own images alone.
        """
        batch = call.arguments["batch"]
        moved, there = at_future_frame(batch, list(self.policy.config.image_features), self.cameras, steps)
        seen = self.views_of(moved, moved)
        missing = seen.valid.new_zeros(len(seen.images))
        known = torch.stack([on_device(there.get(name, missing), seen.valid.device) for name in seen.names], 1)
        return replace(seen, valid=seen.valid & known[:, :, None, None])
