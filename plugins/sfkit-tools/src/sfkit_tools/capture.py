"""Reading the visual tokens of a policy, wrapped or not, without leaving a trace."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sfkit.config import StudentLayer
from sfkit.errors import ConfigError
from sfkit.factory.components import ComponentLike, build_adapter
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.training.attach import handle_of
from sfkit.training.taps import Taps, site_of
from sfkit.utils.runtime import own_rng
from sfkit.views.cameras import CameraRig
from sfkit.views.types import FeatureMap, Views


def capture_tokens(
    policy: nn.Module,
    batch: Any,
    student_layer: StudentLayer,
    adapter: ComponentLike | PolicyAdapter | None = None,
    cameras: CameraRig | None = None,
) -> tuple[FeatureMap, Views]:
    """Run ``policy(batch)`` in eval mode without gradients and return its visual tokens at a student layer.

    The policy's training flags, the global random state, and its hooks are as before afterward, also when the policy
    fails.

    Args:
        policy: Any policy with an adapter; wrapped by ``SpatialForcing`` or not.
        batch: What its forward takes.
        student_layer: Residual stream after this many blocks (0: the embeddings), or ``"encoder"``.
        adapter: The adapter, if it is not the wrapped policy's own or the one registered for its class.
        cameras: Calibration and poses, for views with geometry; by default those of the wrap.

    Returns:
        ``(b, v, gh, gw, d)`` tokens with their mask, detached, and the views that they belong to.

    Raises:
        AdapterError: No adapter handles the policy.
        ConfigError: ``student_layer`` is out of range.
        TapError: The tap did not fire.
    """
    found = _adapter(policy, adapter)
    if not isinstance(student_layer, str) and not 0 <= student_layer <= found.num_layers:
        raise ConfigError(
            f"Student layer {student_layer} is out of range.",
            f"Student layers are 0 (embeddings) to {found.num_layers}.",
        )
    device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
    with _evaluating(policy), _with_cameras(found, cameras), own_rng(device), torch.no_grad():
        site = site_of(student_layer)
        taps = Taps(found, [site])
        try:
            output, captured, inputs = taps.run(policy, (batch,), {})
        finally:
            taps.remove()
        bound = inspect.signature(type(found.policy).forward).bind(found.policy, batch)
        bound.apply_defaults()
        views = found.views(ForwardCall(bound.arguments, output, inputs, (student_layer,)))
        return site.tokens(found, captured[site], views), views


def _adapter(policy: nn.Module, adapter: ComponentLike | PolicyAdapter | None) -> PolicyAdapter:
    handle = handle_of(policy)
    if adapter is None and handle is not None:
        own: PolicyAdapter = handle.adapter
        return own
    return build_adapter(policy, adapter)


@contextmanager
def _with_cameras(adapter: PolicyAdapter, cameras: CameraRig | None) -> Iterator[None]:
    before = adapter.cameras
    adapter.cameras = before if cameras is None else cameras
    try:
        yield
    finally:
        adapter.cameras = before


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    """Eval mode, restored module by module: parts of a policy may be kept in another mode than the whole."""
    before = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
