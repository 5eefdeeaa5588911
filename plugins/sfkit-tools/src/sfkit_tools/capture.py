"""Read the visual tokens of a policy. The only module of this package that reaches into ``sfkit.training``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfkit.config import StudentLayer
from sfkit.errors import ConfigError
from sfkit.factory.components import ComponentLike, build_adapter, build_teacher
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.teachers.base import Teacher
from sfkit.training.attach import handle_of
from sfkit.training.checks import find_trained_leaf, gradient_leaves
from sfkit.training.taps import Taps, site_of
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.utils.runtime import own_rng
from sfkit.views.cameras import CameraRig
from sfkit.views.types import FeatureMap, Views

Layer = TypeVar("Layer", bound=StudentLayer)


def capture_tokens(
    policy: nn.Module,
    batch: object,
    student_layer: StudentLayer,
    adapter: ComponentLike | PolicyAdapter | None = None,
    cameras: CameraRig | None = None,
) -> tuple[FeatureMap, Views]:
    """Run ``policy(batch)`` in eval mode without gradients and return its visual tokens at a student layer.

    Training flags, the global random state and hooks are restored, also when the policy raises.

    Args:
        policy: A policy with an adapter, wrapped by ``SpatialForcing`` or not.
        batch: The argument of its forward.
        student_layer: Residual stream after this many blocks (0: the embeddings), or ``"encoder"``.
        adapter: Replaces the adapter of the wrapped policy, or the one registered for its class.
        cameras: Calibration and poses, for views with geometry; by default those of the wrap.

    Returns:
        ``(b, v, gh, gw, d)`` tokens with their mask, detached, and their views.

    Raises:
        AdapterError: No adapter handles the policy.
        ConfigError: ``student_layer`` is out of range.
        TapError: The tap did not run.
    """
    found = _adapter(policy, adapter)
    if not isinstance(student_layer, str) and not 0 <= student_layer <= found.num_layers:
        raise ConfigError(
            f"Student layer {student_layer} is out of range.",
            f"Student layers are 0 (embeddings) to {found.num_layers}.",
        )
    device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))

    def arguments() -> Mapping[str, object]:
        bound = inspect.signature(type(found.policy).forward).bind(found.policy, batch)
        bound.apply_defaults()
        return bound.arguments

    with _evaluating(policy), _with_cameras(found, cameras), own_rng(device), torch.no_grad():
        tokens, views, _ = run_with_taps(found, [student_layer], lambda: policy(batch), arguments)
    return tokens[student_layer], views


def run_with_taps(
    adapter: PolicyAdapter,
    layers: Sequence[Layer],
    forward: Callable[[], object],
    arguments: Callable[[], Mapping[str, object]],
) -> tuple[dict[Layer, FeatureMap], Views, ForwardCall]:
    """Run a forward of the adapter's policy with a tap at each layer, and remove all hooks.

    Args:
        adapter: The policy's adapter.
        layers: Student layers.
        forward: Runs the policy.
        arguments: Gives the arguments of its forward by parameter name; called after ``forward``.

    Returns:
        Visual tokens ``(b, v, gh, gw, d)`` by student layer, their views, and the call.

    Raises:
        TapError: A tap did not run.
    """
    sites = {layer: site_of(layer) for layer in layers}
    taps = Taps(adapter, list(sites.values()))
    try:
        output, captured, inputs = taps.run(forward, (), {})
    finally:
        taps.remove()
    call = ForwardCall(arguments(), output, inputs, tuple(layers))
    views = adapter.views(call)
    return {layer: site.tokens(adapter, captured[site], views) for layer, site in sites.items()}, views, call


def teacher_features(
    teacher: ComponentLike | Teacher,
    views: Views,
    layer: int | None,
    grid: tuple[int, int],
    missing: Callable[[str], str],
) -> tuple[Teacher, int, FeatureMap]:
    """The built teacher, its layer (by default ``default_layer``) and its features for these views.

    ``missing`` explains why the views lack a field that the teacher needs.
    """
    runner = TeacherRunner(build_teacher(teacher))
    layer = runner.teacher.default_layer if layer is None else layer
    return runner.teacher, layer, runner.features(views, [layer], grid, missing)[0]


def is_wrapped(model: nn.Module) -> bool:
    """Whether ``SpatialForcing`` wraps a module of this model."""
    return any(handle_of(module) is not None for module in model.modules())


def trainable_values(state: Tensor) -> int:
    """Number of trainable parameter values that the gradient of a hidden state ``(b, n, d)`` reaches."""
    return sum(leaf.numel() for leaf in gradient_leaves(state) if leaf.requires_grad)


def trains_policy(student: FeatureMap) -> bool:
    """Whether the gradient of these visual tokens reaches a trainable parameter."""
    return find_trained_leaf(student) is not None


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
    """Eval mode inside the block; each module gets its own mode back, since parts may differ from the whole."""
    before = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
