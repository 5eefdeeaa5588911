"""The self-check of the first steps: alignment has something to train, and an optimizer trains it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sfkit.errors import ConfigError, GradientError, SfkitWarning, ViewsError
from sfkit.policies.base import PolicyAdapter
from sfkit.training.observer import StepObserver
from sfkit.training.pair import Alignment
from sfkit.training.taps import Taps, TapSite
from sfkit.utils.runtime import is_sharded
from sfkit.views.types import FeatureMap, Views

_NEAREST = 16
_TOLERANCE = 1e-3

_FROZEN_REMEDY = "Something froze it after the wrap (get_peft_model does): apply LoRA first, then wrap the PeftModel."


@torch.no_grad()
def check_views(views: Views) -> None:
    """Check the range of the valid pixels.

    Raises:
        ViewsError: NaN, or values outside [0, 1], where a view is valid.
    """
    inside = views.images.float().masked_fill(~views.valid.unsqueeze(2), 0.5)
    low, high = float(inside.min()), float(inside.max())
    if not bool(inside.isfinite().all()):
        raise ViewsError("The images contain NaN or infinity.", "Look at the dataset and at the image transforms.")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ViewsError(
            f"The adapter's views range from {low:.3g} to {high:.3g}, expected [0, 1].",
            "Give what the policy's own preprocessor returns (LeRobot: images in [0, 1]); check VISUAL normalization.",
        )


def gradient_leaves(tokens: Tensor) -> Iterator[Tensor]:
    """Leaf tensors in the graph of ``tokens``, ``(b, v, gh, gw, d)``, nearest first."""
    seen: set[object] = set()
    queue = [tokens.grad_fn]
    for node in queue:
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                yield node.variable
            queue.extend(child for child, _ in node.next_functions)


def find_trained_leaf(student: FeatureMap) -> Tensor | None:
    """A trainable tensor that the gradient of the *visual tokens* really reaches, or None.

    ``requires_grad`` of the hidden state proves nothing: in SmolVLA's default, all that requires a gradient is the
    state token, which shares the sequence with the image tokens but is never seen by them. So a random cotangent is
    sent back from the visual tokens alone, first to the nearest leaves (cheap), then to the others.
    """
    tokens = student.values
    if not tokens.requires_grad:
        return None
    leaves = [leaf for leaf in gradient_leaves(tokens) if leaf.requires_grad]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(tokens.shape, generator=generator).to(tokens.device, tokens.dtype)
    cotangent = torch.where(student.mask.unsqueeze(-1), cotangent, 0.0)
    for group in filter(None, (leaves[:_NEAREST], leaves[_NEAREST:])):
        gradients = torch.autograd.grad(tokens, group, cotangent, retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(group, gradients, strict=True):
            if gradient is not None and bool(gradient.ne(0).any()):
                return leaf
    return None


class OptimizerWatch:
    """Shows, from the versions of two parameters ``(*)``, whether what moves the policy also moves the projector."""

    def __init__(self, policy: Tensor, projector: Tensor) -> None:
        """Start with one parameter of each, ``(*)``."""
        self.policy, self.projector = policy, projector
        self.versions = policy._version, projector._version
        self.steps = 0

    def projector_moved(self) -> bool | None:
        """True once it moved, False when two optimizer steps passed it by, None as long as nobody knows."""
        policy, projector = self.versions
        if self.projector._version != projector:
            return True
        self.steps += self.policy._version != policy
        self.versions = self.policy._version, projector
        return False if self.steps >= 2 else None


class SelfCheck(StepObserver):
    """Watches the first aligned steps, until it has seen an optimizer train the projectors.

    Args:
        adapter: Of the policy.
        projectors: The module that holds all that the alignment trains.
        taps: The taps of the policy.
        enabled: Whether to check at all.

    Attributes:
        reaches_policy: Whether gradient reaches the policy; None until known.
        projector_moved: Whether the optimizer trains the projector; None until known.
    """

    def __init__(self, adapter: PolicyAdapter, projectors: nn.Module, taps: Taps, *, enabled: bool) -> None:
        self.adapter, self.projectors, self.taps = adapter, projectors, taps
        self.next_step = 0 if enabled else math.inf
        self.reaches_policy: bool | None = None
        self.projector_moved: bool | None = None
        self._optimizer: OptimizerWatch | None = None
        self._backward = False
        self._attached = False
        # By name: FSDP2 replaces the parameters, and LoRA wraps them under other names.
        self._frozen_at_wrap = self._frozen()

    def captured(self, views: Views, students: Mapping[TapSite, FeatureMap]) -> None:
        """Check the projectors, the views, and (once a token is valid) the way of the gradient.

        Raises:
            GradientError: Something froze the projector or a part of it, or two optimizer steps left it where it was;
                or the gradient of a site reaches no trainable parameter of the policy.
            ViewsError: The images are out of range.
            ConfigError: FSDP2 casts the projectors.
        """
        if self.projector_moved is None:
            self._check_projectors()
        if self.reaches_policy:
            return
        check_views(views)
        if is_sharded(self.projectors) or is_sharded(self.adapter.policy):
            self._refuse_cast()
            self._give_up("under FSDP2 the check's own backward pass would scatter the parameters again.")
        elif any(bool(student.mask.any()) for student in students.values()):
            self._check_gradients(students)

    def aligned(self, views: Views, students: Mapping[TapSite, FeatureMap], results: Sequence[Alignment]) -> None:
        if self._optimizer is not None and not self._backward:
            for result in results:
                if result.loss.requires_grad:
                    result.loss.register_hook(self._note_backward)  # type: ignore[no-untyped-call]

    def attached(self, loss: Tensor) -> None:
        """Look, in the first backward pass, at the gradient of ``loss``, ``()`` or ``(b, ...)``."""
        if not self._attached:
            self._attached = True
            warn_if_sum_reduction(loss)

    def _note_backward(self, gradient: Tensor) -> None:
        """A gradient ``(b,)`` came through the alignment loss."""
        self._backward = True

    def _check_projectors(self) -> None:
        parameters = list(self.projectors.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise GradientError(
                "The projector is frozen, so alignment would compare with a random head.",
                _FROZEN_REMEDY,
            )
        if frozen := self._frozen() - self._frozen_at_wrap:
            raise GradientError(
                f"A part of the projector was frozen after the wrap ({', '.join(sorted(frozen))}), so a mutilated "
                "projector would be trained.",
                _FROZEN_REMEDY,
            )
        if self._optimizer is None:
            return
        self.projector_moved = self._optimizer.projector_moved()
        if self.projector_moved is False and not self._backward:
            raise GradientError(
                "The optimizer has moved the policy twice, and no backward pass went through the alignment loss: the "
                "loop's loss is not the one that forward returned, nor computed from what it returned.",
                "Wrap with attach_loss='backward' if the loop computes its loss from what forward returns, or 'manual' "
                "to write `loss = policy.spatial_forcing.add(loss)`; what the loop reads elsewhere cannot carry it.",
            )
        if self.projector_moved is False:
            raise GradientError(
                "The optimizer has moved the policy twice and never the projector.",
                "Build the optimizer after SpatialForcing.wrap, from parameters that include policy.spatial_forcing.",
            )
        if self.projector_moved:
            self._optimizer = None
            self.next_step = math.inf if self.reaches_policy else 0

    def _frozen(self) -> set[str]:
        return {name for name, parameter in self.projectors.named_parameters() if not parameter.requires_grad}

    def _refuse_cast(self) -> None:
        found = {parameter.dtype for parameter in self.projectors.parameters()} - {torch.float32, torch.float64}
        if found:
            raise ConfigError(
                f"FSDP2 in mixed precision makes {str(found.pop()).removeprefix('torch.')} of the projector.",
                "fully_shard(policy.spatial_forcing) first, without an mp_policy, then the policy, whose mp_policy has "
                "cast_forward_inputs=False. (accelerate cannot: use it without mixed precision, or DDP.)",
            )

    def _check_gradients(self, students: Mapping[TapSite, FeatureMap]) -> None:
        for site, student in students.items():
            try:
                leaf = find_trained_leaf(student)
            except RuntimeError as error:
                # Compiled graphs with donated buffers, and reentrant checkpoints, cannot be run back twice.
                self._give_up(str(error))
                return
            if leaf is None:
                self.reaches_policy = False
                raise self._unreached(site)
            parameter = next((p for p in self.projectors.parameters() if p.requires_grad), None)
            if self._optimizer is None and parameter is not None:
                self._optimizer = OptimizerWatch(leaf, parameter)
        self.reaches_policy = True

    def _unreached(self, site: TapSite) -> GradientError:
        hint = self.adapter.unfreeze_hint()
        frozen = f"what is frozen ({hint})" if hint else "what is frozen"
        if self.taps.at[site].without_gradient:
            return GradientError(
                f"The tap at {site} fired while gradients were off: in a reentrant activation checkpoint, or under "
                "no_grad. Only the projector would learn.",
                f"Checkpoint with use_reentrant=False, remove the no_grad around {frozen}, or choose another layer.",
            )
        return GradientError(
            f"The gradient of the visual tokens at {site} reaches no trainable parameter of the policy: only the "
            "projector would learn.",
            f"Unfreeze {frozen} before that layer, put LoRA on it, or choose a layer after trainable ones.",
        )

    def _give_up(self, reason: str) -> None:
        """Say that the gradient path stays unverified, and why."""
        warnings.warn(f"sfkit could not verify the gradient path: {reason}", SfkitWarning, stacklevel=3)
        self.next_step = math.inf


def warn_if_sum_reduction(loss: Tensor) -> None:
    """Warn, in backward, if a trainer sums a loss of several values: the alignment loss then counts as often.

    A mean hands each of ``n`` values ``1/n`` of the gradient, a sum hands it all. Exactly 1 everywhere is thus the sign
    of a sum; a sum that is scaled or divided afterward looks like a mean.

    Args:
        loss: What the trainer is given, of any shape ``(b, ...)``.
    """
    count = loss.numel()  # the hook must not hold the loss, which holds the hook

    def check(gradient: Tensor) -> None:
        """The gradient has the shape ``(b, ...)`` of the loss."""
        if bool((gradient == 1).all()):
            message = (
                f"sfkit: the {count} values of the policy's loss are summed and not averaged, so both the action loss "
                f"and the alignment loss count {count} times. Use their mean, as the policy's own trainer does."
            )
            warnings.warn(message, SfkitWarning, stacklevel=2)

    if count > 1 and loss.requires_grad:
        loss.register_hook(check)  # type: ignore[no-untyped-call]
