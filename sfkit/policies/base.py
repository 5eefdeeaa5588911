"""The policy adapter interface, and the loss in what a policy returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, LossError
from sfkit.registry.component import AnyOptions, Configurable
from sfkit.views.cameras import CameraRig
from sfkit.views.types import FeatureMap, Views

#: Keys of a mapping under which a policy returns its loss.
_LOSS_KEYS = ("loss", "action_loss")


@dataclass(frozen=True)
class TapPoint:
    """Where a hidden state is read: the first positional input of a module.

    For the residual stream after k blocks, tap the norm that the *next* block begins with. Do not tap blocks: pi0 and
    SmolVLA never call theirs, and the output of a sublayer is added to in place afterward.

    Attributes:
        module: The module whose input is read.
        path: Its name in messages.
        all_calls: Read all calls in one forward, such as those of a vision tower that runs for each camera.
        extra_modules: Further modules, where each camera has its own; their inputs are concatenated behind the first's,
            along the first axis.
        extract: For :meth:`PolicyAdapter.extra_hooks`: a function of module and input, whose result replaces the input.
            It must be a module-level function, so that it can be pickled, and draw no random numbers.
    """

    module: nn.Module
    path: str
    all_calls: bool = False
    extra_modules: tuple[nn.Module, ...] = ()
    extract: Callable[[nn.Module, Tensor], object] | None = None


@dataclass(frozen=True)
class ForwardCall:
    """One call of the policy's forward.

    Attributes:
        arguments: The arguments by parameter name, defaults included.
        output: What the policy returned.
        inputs: Inputs of the modules in :meth:`PolicyAdapter.extra_hooks`, by its names, one for each call.
        student_layers: The tapped student layers.
    """

    arguments: Mapping[str, Any]
    output: Any
    inputs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    student_layers: tuple[Any, ...] = ()


class AdapterOptions(Options):
    """Options of adapters that cut visual tokens out of a longer sequence (:func:`sfkit.policies.tokens.cut`).

    A ``token_shift`` aligns every patch with its neighbor's feature. It serves to reproduce the released recipe alone.
    """

    token_shift: int = Field(
        default=0,
        ge=0,
        description="Cut the visual tokens so many places too late, as released for OpenVLA (1).",
    )


class PolicyAdapter(Configurable, ABC):
    """What sfkit needs to know about a family of policies: its layers, its visual tokens and its images.

    Authors set ``name`` and write five methods: ``num_layers``, ``dim`` and ``tap`` (where the hidden states are),
    ``visual_tokens`` (which of them stand for patches) and ``views`` (the images that the policy saw). All other
    methods have defaults, or raise an error that says what a feature needs.

    In each aligned step the core taps the hidden states during forward, and then calls ``views`` with the call and
    ``visual_tokens`` with each hidden state. An adapter may keep what ``views`` computed for ``visual_tokens``.

    Args:
        policy: The policy itself, without wrappers such as PEFT.
        options: The adapter's options.

    Attributes:
        cameras: Calibration and poses from ``wrap``. An adapter that supports them fills depth, intrinsics and poses of
            its views.
        loss_outside: True where the training loop computes the loss from what forward returns.
    """

    cameras: CameraRig | None = None
    loss_outside: bool = False

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        self.policy = policy
        self.configure(options)

    def bind(self, policy: nn.Module) -> PolicyAdapter:
        """This adapter for ``policy``, where the user passes an instance to ``wrap``; itself by default."""
        return self

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of decoder blocks; valid layers are 0 (embeddings) to ``num_layers`` (before the final norm)."""

    @property
    def default_student_layer(self) -> int:
        """Two thirds of the blocks: the released recipes use 12 of 18 (pi0) and 24 of 32 (OpenVLA)."""
        return max(1, round(2 * self.num_layers / 3))

    @abstractmethod
    def dim(self, layer: int) -> int:
        """Width of the hidden state at a layer."""

    @abstractmethod
    def tap(self, layer: int) -> TapPoint:
        """Where to read the residual stream after ``layer`` blocks."""

    def extra_hooks(self) -> Mapping[str, TapPoint]:
        """Modules whose inputs :meth:`views` needs, by a name of the adapter's choice; ``call.inputs`` holds them.

        For policies that augment images inside forward: the final pixels exist there alone.
        """
        return {}

    @abstractmethod
    def views(self, call: ForwardCall) -> Views:
        """What the student saw in this call: the same pixels and geometry, in the order of its tokens."""

    def writes_checkpoints(self) -> bool:
        """Whether this process writes when ``save_pretrained`` is called.

        Some frameworks call it in all processes, and only the first one writes.
        """
        return True

    def future_views(self, call: ForwardCall, steps: int) -> Views:
        """What the cameras see ``steps`` steps later, in the form of :meth:`views`; for the teacher alone.

        A view without such a frame, as at the end of an episode, is all invalid.

        Raises:
            ConfigError: This adapter has no future frames.
            ViewsError: The batch has none.
        """
        raise ConfigError(
            f"Adapter {self.name!r} cannot give a teacher the frame {steps} steps ahead.",
            "Leave future out of the pairs, or write future_views.",
        )

    @abstractmethod
    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """Cut the visual tokens out of a tapped hidden state.

        Args:
            hidden: ``(b, n, d)`` for most policies; three or four axes.
            views: What :meth:`views` returned for this call.

        Returns:
            ``(b, v, gh, gw, d)``. The mask is True for tokens that may be aligned: those whose pixels are all valid,
            see :meth:`sfkit.Views.token_mask`.
        """

    def encoder_tap(self) -> TapPoint:
        """Where to read the output of the vision tower, before the language model: ``student_layer="encoder"``.

        Tap the input of the module that follows (the connector), with ``all_calls`` if the tower runs for each view.

        Raises:
            ConfigError: This adapter does not know the policy's vision tower.
        """
        raise ConfigError(
            f"Adapter {self.name!r} has no tap at the vision tower's output.",
            f"Choose a student_layer of 0 to {self.num_layers}, or write encoder_tap, encoder_dim and encoder_tokens.",
        )

    def encoder_dim(self) -> int:
        """Width of the vision tower's output."""
        raise NotImplementedError(f"{type(self).__name__} has an encoder_tap but no encoder_dim.")

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        """The tower's tokens ``(b, v, gh, gw, d)``, on its own grid; see :func:`sfkit.policies.tokens.tower_tokens`.

        Args:
            states: What the tap read in this forward, ``(*, n, d)`` each, in the order of the calls.
            views: What :meth:`views` returned for this call.
        """
        raise NotImplementedError(f"{type(self).__name__} has an encoder_tap but no encoder_tokens.")

    def attention_heads(self, block: int) -> tuple[int, int]:
        """Number of query heads of a block, from 1, and channels of each.

        Raises:
            ConfigError: This adapter does not know the policy's queries and keys.
        """
        raise ConfigError(
            f"Adapter {self.name!r} does not give the queries and keys of {type(self.policy).__name__}.",
            "Choose an objective that reads features, or write attention_heads and attention_tokens.",
        )

    def attention_tokens(self, hidden: Tensor, block: int, views: Views) -> FeatureMap:
        """Queries and keys of the visual tokens, with gradient.

        Compute them again from the hidden state, with the block's own norm, projections and position code. A hook
        inside the block would read no gradient under reentrant activation checkpointing, and no module exists between
        the projections and attention.

        Args:
            hidden: ``(b, n, d)``: what :meth:`tap` read at layer ``block - 1``.
            block: From 1 to :attr:`num_layers`.
            views: What :meth:`views` returned for this call.

        Returns:
            ``(b, v, gh, gw, 2 * heads * channels)``: queries, already scaled, then keys. Keys that several heads share
            are repeated.
        """
        raise NotImplementedError(f"{type(self).__name__} has attention_heads but no attention_tokens.")

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        """Why :meth:`views` left an optional field None: where it looked, and what was there instead.

        The error of a teacher that requires the field shows it.
        """
        return ""

    def unfreeze_hint(self) -> str:
        """Options of the policy that let gradient reach what is below a tap, such as ``"tune_llm=True"``.

        The error that stops a run with a frozen backbone shows it.
        """
        return ""

    def loss(self, output: object) -> Tensor | None:
        """The policy's own loss in what forward returned, ``()`` or ``(b, ...)``; None where it computes none."""
        return find_loss(output)

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """``output`` with its loss replaced.

        Args:
            output: What forward returned.
            loss: The new loss, in the shape of the old one: ``()`` or ``(b, ...)``.
            logs: Values to log, where the framework has a place for them: ``action_loss``, ``sf_loss``, ``sf_cosine``
                and ``sf_effective_weight``, each ``()`` and detached. Empty when nothing was aligned.
        """
        return replace_loss(output, loss)


def find_loss(output: object) -> Tensor | None:
    """The loss in a tensor, a ``(loss, ...)`` tuple, a mapping or ``ModelOutput`` with a loss key; else None."""
    if isinstance(output, Mapping):
        return next((output[key] for key in _LOSS_KEYS if isinstance(output.get(key), Tensor)), None)
    loss = output[0] if isinstance(output, (tuple, list)) and output else output
    return loss if isinstance(loss, Tensor) else None


def replace_loss(output: Any, loss: Tensor) -> Any:
    """``output`` with its loss replaced by ``loss``, ``()`` or ``(b, ...)``.

    Mappings change in place, as in their framework's own code.

    Raises:
        LossError: No loss is found in ``output``.
    """
    if isinstance(output, Tensor):
        return loss
    if isinstance(output, MutableMapping):
        for key in _LOSS_KEYS:
            if isinstance(output.get(key), Tensor):
                output[key] = loss
                return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return with_item(output, 0, loss)
    raise LossError(f"No loss found in the {type(output).__name__} that forward returned.", "Write loss and with_loss.")


def with_item(values: Sequence[object], index: int, value: object) -> object:
    """A tuple, named tuple or list of the same type with one item replaced."""
    items = [*values[:index], value, *values[index + 1 :]]
    kind: Any = type(values)
    return kind(*items) if hasattr(values, "_fields") else kind(items)


def add_per_sample(loss: Tensor, extra: Tensor) -> Tensor:
    """Add a per-sample term ``(b,)`` to a loss, whatever its reduction.

    The mean of the result is the mean of ``loss`` plus the mean of ``extra``, for a scalar ``()``, per-sample ``(b,)``
    and per-element ``(b, ...)`` loss alike.

    Raises:
        LossError: A non-scalar loss whose first axis is not the batch.
    """
    extra = extra.to(loss.device)
    if loss.ndim == 0:
        # float32 at least: in bfloat16 a small alignment loss would vanish beside the action loss.
        return loss + extra.mean().to(torch.promote_types(loss.dtype, torch.float32))
    if loss.shape[0] != extra.shape[0]:
        raise LossError(f"A loss has shape {tuple(loss.shape)} for a batch of {extra.shape[0]}.", "Reduce it to (b,).")
    return loss + extra.reshape(-1, *[1] * (loss.ndim - 1))
