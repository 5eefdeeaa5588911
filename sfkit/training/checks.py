"""The first-batch self-check: that alignment has something to train, and that an optimizer trains it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfkit.config import StudentLayer
from sfkit.errors import ConfigError, GradientError, SfkitWarning, ViewsError
from sfkit.training.taps import student_layer_name
from sfkit.views.types import FeatureMap, Views

_NEAREST = 16
_TOLERANCE = 1e-3


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
            "The batch is not what the policy's own preprocessor produces (LeRobot: images float in [0, 1] before the "
            "policy); check the processor and its VISUAL normalization.",
        )


def gradient_leaves(tokens: Tensor) -> Iterator[Tensor]:
    """Leaf tensors in the graph of ``tokens``, nearest first."""
    seen: set[object] = set()
    queue = [tokens.grad_fn]
    for node in queue:
        if node is None or node in seen:
            continue
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
    for group in (leaves[:_NEAREST], leaves[_NEAREST:]):
        if not group:
            continue
        gradients = torch.autograd.grad(tokens, group, cotangent, retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(group, gradients, strict=True):
            if gradient is not None and bool(gradient.ne(0).any()):
                return leaf
    return None


@dataclass
class OptimizerWatch:
    """Sees from version counters whether an optimizer that moves the policy also moves the projector."""

    witness: Tensor
    projector: Tensor
    witness_version: int
    projector_version: int
    steps: int = 0

    @classmethod
    def start(cls, witness: Tensor, projector: Tensor) -> OptimizerWatch:
        """Watch from now."""
        return cls(witness, projector, witness._version, projector._version)

    def projector_moved(self) -> bool | None:
        """True once it moved, False when two optimizer steps passed it by, None as long as nobody knows."""
        if self.projector._version != self.projector_version:
            return True
        if self.witness._version != self.witness_version:
            self.witness_version = self.witness._version
            self.steps += 1
        return False if self.steps >= 2 else None


class SelfCheck:
    """Runs on the first batches and then gets out of the way.

    Attributes:
        reaches_policy: Whether gradient reaches the policy; None until known.
        projector_moved: Whether the optimizer trains the projector; None until known.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.reaches_policy: bool | None = None
        self.projector_moved: bool | None = None
        self._watch: OptimizerWatch | None = None
        self._went_back = False
        self._loss_is_new = True

    @property
    def first_batch(self) -> bool:
        """True while the checks of the first batch are still to be done."""
        return self.enabled and not self.reaches_policy

    def first_loss(self) -> bool:
        """True once: what is looked at in the first backward pass costs a synchronization."""
        new, self._loss_is_new = self.enabled and self._loss_is_new, False
        return new

    def see(self, loss: Tensor) -> None:
        """Notice whether a backward pass goes through the alignment loss, as long as nobody knows what moves."""
        if self._watch is not None and loss.requires_grad and not self._went_back:
            loss.register_hook(self._note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor) -> None:
        self._went_back = True

    def before(self, projectors: nn.Module) -> None:
        """Before a step's alignment: is the projector trainable, and does the optimizer know it?

        Raises:
            GradientError: It is frozen, or two optimizer steps left it where it was.
        """
        if not self.enabled or self.projector_moved is not None:
            return
        parameters = list(projectors.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise GradientError(
                "The projector is frozen, so alignment would compare with a random head.",
                "Something froze it after the wrap (get_peft_model does): apply LoRA first, then wrap the PeftModel.",
            )
        if self._watch is None:
            return
        self.projector_moved = self._watch.projector_moved()
        if self.projector_moved is False and not self._went_back:
            raise GradientError(
                "The optimizer has moved the policy twice, and no backward pass went through the alignment loss: the "
                "training loop's loss is not the one that forward returned, nor computed from what it returned.",
                "Wrap with attach_loss='backward' if the loop computes its loss from what forward returns, or with "
                "attach_loss='manual' and write `loss = policy.spatial_forcing.add(loss)`. What the loop reads from "
                "elsewhere (an attribute of the policy) cannot carry: return it.",
            )
        if self.projector_moved is False:
            raise GradientError(
                "The optimizer has moved the policy twice and never the projector.",
                "Build the optimizer after SpatialForcing.wrap, from parameters that include policy.spatial_forcing.",
            )
        if self.projector_moved:
            self._watch = None

    def tokens(
        self,
        students: Mapping[StudentLayer, FeatureMap],
        projectors: nn.Module,
        unfreeze: str = "",
        without_gradient: Collection[StudentLayer] = (),
    ) -> None:
        """On the first batch with valid tokens: does gradient reach trainable parameters from every student layer?

        Args:
            students: Visual tokens by student layer.
            projectors: The projectors, watched from then on.
            unfreeze: What this policy calls the options that unfreeze what is below a tap.
            without_gradient: Student layers whose taps fired while gradients were off.

        Raises:
            GradientError: It does not.
        """
        for layer, student in students.items():
            try:
                leaf = find_trained_leaf(student)
            except RuntimeError as error:
                # Compiled graphs with donated buffers, and reentrant checkpoints, cannot be run back twice.
                self.give_up(str(error))
                return
            if leaf is None:
                self.reaches_policy = False
                if layer in without_gradient:
                    frozen = f" that guards what is frozen ({unfreeze})" if unfreeze else ""
                    raise GradientError(
                        f"The tap at {student_layer_name(layer)} fired while gradients were off: inside a reentrant "
                        "activation checkpoint, which runs without gradient first, or under no_grad. From there the "
                        "alignment would train the projector alone.",
                        f"Checkpoint with use_reentrant=False, take away the no_grad{frozen}, or choose another layer.",
                    )
                raise GradientError(
                    f"The gradient of the visual tokens at {student_layer_name(layer)} reaches no trainable parameter "
                    "of the policy: alignment would train the projector alone.",
                    f"Unfreeze what lies before that layer{f' ({unfreeze})' if unfreeze else ''}, put LoRA on it, or "
                    " choose a student layer after trainable layers.",
                )
            parameter = next((p for p in projectors.parameters() if p.requires_grad), None)
            if self._watch is None and parameter is not None:
                self._watch = OptimizerWatch.start(leaf, parameter)
        self.reaches_policy = True

    def give_up(self, reason: str) -> None:
        """Say that the gradient path stays unverified, and why."""
        warnings.warn(f"sfkit could not verify the gradient path: {reason}", SfkitWarning, stacklevel=3)
        self.enabled = False


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's ``fully_shard`` was applied; recognized by name, as it is not in every torch."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def refuse_shards(policy: nn.Module) -> None:
    """Check that weights may be used outside of the blocks that they belong to.

    Raises:
        ConfigError: FSDP2 has scattered them.
    """
    if any(is_sharded(module) for module in policy.modules()):
        raise ConfigError(
            "Queries and keys are made outside the policy's blocks, where FSDP2 has scattered their weights.",
            "Train with DDP, or choose an objective that reads features.",
        )


def refuse_cast(projectors: nn.Module) -> None:
    """Check that FSDP2 has left the projectors in the precision in which features are compared.

    Raises:
        ConfigError: Its mixed precision has not.
    """
    found = {parameter.dtype for parameter in projectors.parameters()} - {torch.float32, torch.float64}
    if found:
        raise ConfigError(
            f"FSDP2 in mixed precision makes {str(found.pop()).removeprefix('torch.')} of the projector.",
            "fully_shard(policy.spatial_forcing) first, without an mp_policy, then the policy, whose mp_policy has "
            "cast_forward_inputs=False. (accelerate cannot: use it without mixed precision, or DDP.)",
        )
