"""The policy adapter interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError
from sfkit.policies.loss import find_loss, replace_loss
from sfkit.registry.component import AnyOptions, Configurable
from sfkit.views.cameras import CameraRig
from sfkit.views.types import FeatureMap, Views


@dataclass(frozen=True)
class TapPoint:
    """Where a hidden state is read: the first input of ``module``, called ``path`` in messages.

    The input of the *next* block's norm is the residual stream after k blocks. Blocks themselves make poor taps: pi0
    and SmolVLA never call them, and what their sublayers return is added to in place afterward.

    ``all_calls`` reads all calls in one forward, such as those of a vision tower that runs for each camera. Where each
    camera has a module of its own, ``extra_modules`` are the further ones; their inputs are joined behind the first's,
    along the first axis.

    ``extract`` is for :meth:`PolicyAdapter.extra_hooks`: it replaces the input by what it returns for the module and
    the input. It leaves random states as they are, and is a function of a module, which can be pickled.
    """

    module: nn.Module
    path: str
    all_calls: bool = False
    extra_modules: tuple[nn.Module, ...] = ()
    extract: Callable[[nn.Module, Tensor], Any] | None = None


@dataclass(frozen=True)
class ForwardCall:
    """One call of the policy's forward.

    Attributes:
        arguments: The arguments by parameter name, defaults included.
        output: What the policy returned.
        inputs: What the modules that :meth:`PolicyAdapter.extra_hooks` names were given, once for each time they ran.
        student_layers: What is tapped.
    """

    arguments: Mapping[str, Any]
    output: Any
    inputs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    student_layers: tuple[Any, ...] = ()


class AdapterOptions(Options):
    """Options of adapters whose visual tokens are cut out of a longer sequence (:func:`sfkit.policies.tokens.cut`)."""

    token_shift: int = Field(
        default=0,
        ge=0,
        description="Cut the visual tokens so many places too late, as the released OpenVLA recipe of Spatial Forcing "
        "does (1): every patch is then aligned with its neighbor's feature. Only to reproduce it.",
    )


class PolicyAdapter(Configurable, ABC):
    """Everything sfkit needs to know about a family of policies.

    Args:
        policy: The policy itself, found inside wrappers such as PEFT.
        options: The adapter's options.

    Attributes:
        cameras: Calibration and poses given to ``wrap``; an adapter that can, fills depth, intrinsics and poses of its
            views from it.
        loss_outside: Whether the training loop computes its loss from what forward returns, and reads no loss there.
    """

    cameras: CameraRig | None = None
    loss_outside: bool = False

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        self.policy = policy
        self.configure(options)

    def bind(self, policy: nn.Module) -> PolicyAdapter:
        """This adapter for ``policy``, to which an instance is given; itself, if it was made for one already."""
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
        """Modules whose inputs :meth:`views` needs, under names of the adapter's choice.

        For pictures that exist within forward only, because the policy augments them there: their very pixels are
        then in ``call.inputs[name]``.
        """
        return {}

    @abstractmethod
    def views(self, call: ForwardCall) -> Views:
        """What the student saw in this call: same pixels, same geometry, in the order of its tokens."""

    def writes_checkpoints(self) -> bool:
        """Whether this process writes when ``save_pretrained`` is called.

        Some frameworks have all processes call it and write in the first one alone.
        """
        return True

    def future_views(self, call: ForwardCall, steps: int) -> Views:
        """What the cameras will see so many steps later, as :meth:`views` would show it; for the teacher alone.

        A view that has no such frame, as at the end of an episode, is all invalid.

        Raises:
            ConfigError: This adapter knows of no future frames.
            ViewsError: The batch has none.
        """
        raise ConfigError(
            f"Adapter {self.name!r} cannot give a teacher the frame {steps} steps ahead.",
            "Leave future out of the pairs, or write future_views.",
        )

    @abstractmethod
    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """Cut the visual tokens ``(b, v, gh, gw, d)`` out of the tapped hidden state.

        That is ``(b, n, d)`` for most policies, and of three or four axes in any case. The mask says which tokens may
        be aligned (a token is valid when all of its pixels are).
        """

    def encoder_tap(self) -> TapPoint:
        """Where to read what the vision tower gives, before the language model: ``student_layer="encoder"``.

        Tap the input of the module that comes next (the connector), with ``every`` where the tower runs for each view.

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
            states: What the tap read in this forward, ``(*, n, d)`` each, in the order of its firings.
            views: Of this call.
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
        """Queries and keys of the visual tokens ``(b, v, gh, gw, 2 * heads * channels)``, with gradient.

        Made anew from what the tap before the block has read, by the block's own norm and projections and with its
        position code: a hook inside the block would see nothing that carries a gradient under reentrant activation
        checkpointing, and what is done between projections and attention is no module. Queries come first, already
        scaled, then keys; keys that several heads share are repeated.

        Args:
            hidden: What :meth:`tap` read at layer ``block - 1``.
            block: From 1 to :attr:`num_layers`.
            views: Of this call.
        """
        raise NotImplementedError(f"{type(self).__name__} has attention_heads but no attention_tokens.")

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        """Why :meth:`views` left an optional field None: where it was looked for, and what was there instead.

        Asked only when a teacher cannot do without the field; shown in the error.
        """
        return ""

    def unfreeze_hint(self) -> str:
        """Options of the policy that let gradient reach what is below a tap, such as ``"tune_llm=True"``.

        Shown in the error that stops a run whose backbone is frozen.
        """
        return ""

    def loss(self, output: Any) -> Tensor | None:
        """The policy's own loss in what forward returned; None where it computes none."""
        return find_loss(output)

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """``output`` with its loss replaced.

        ``logs`` (0-d, detached: ``action_loss``, ``sf_loss``, ``sf_cosine``, ``sf_effective_weight``; empty when
        nothing was aligned) are added where the framework has a place for them.
        """
        return replace_loss(output, loss)
