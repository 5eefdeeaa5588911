"""The policy adapter interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfkit.cameras import CameraRig
from sfkit.component import AnyOptions, Configured
from sfkit.policies.loss import find_loss, replace_loss
from sfkit.types import FeatureMap, Views


@dataclass(frozen=True)
class TapPoint:
    """Where a hidden state is read: the first input of ``module``, called ``path`` in messages.

    The input of the *next* block's norm is the residual stream after k blocks. Blocks themselves make poor taps: pi0
    and SmolVLA never call them, and what their sublayers return is added to in place afterwards.
    """

    module: nn.Module
    path: str


@dataclass(frozen=True)
class ForwardCall:
    """One call of the policy's forward.

    Attributes:
        arguments: The arguments by parameter name, defaults included.
        output: What the policy returned.
    """

    arguments: Mapping[str, Any]
    output: Any


class PolicyAdapter(Configured, ABC):
    """Everything sfkit needs to know about a family of policies.

    Args:
        policy: The policy itself, found inside wrappers such as PEFT.
        options: The adapter's options.

    Attributes:
        cameras: Calibration and poses given to ``wrap``; an adapter that can, fills depth, intrinsics and poses of its
            views from it.
    """

    cameras: CameraRig | None = None

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        self.policy = policy
        self.configure(options)

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of decoder blocks; valid depths are 0 (embeddings) to ``num_layers`` (before the final norm)."""

    @property
    def default_depth(self) -> int:
        """Two thirds of the blocks: the released recipes use 12 of 18 (pi0) and 24 of 32 (OpenVLA)."""
        return max(1, round(2 * self.num_layers / 3))

    @abstractmethod
    def dim(self, depth: int) -> int:
        """Width of the hidden state at a depth."""

    @abstractmethod
    def tap(self, depth: int) -> TapPoint:
        """Where to read the residual stream after ``depth`` blocks."""

    @abstractmethod
    def views(self, call: ForwardCall) -> Views:
        """What the student saw in this call: same pixels, same geometry, in the order of its tokens."""

    @abstractmethod
    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """Cut the visual tokens ``(b, v, gh, gw, d)`` out of the tapped hidden state ``(b, n, d)``.

        The mask says which tokens may be aligned (a token is valid when all of its pixels are).
        """

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        """Why :meth:`views` left an optional field None: where it was looked for, and what was there instead.

        Asked only when a teacher cannot do without the field; shown in the error.
        """
        return ""

    def how_to_unfreeze(self) -> str:
        """Options of the policy that let gradient reach what is below a tap, such as ``"tune_llm=True"``.

        Shown in the error that stops a run whose backbone is frozen.
        """
        return ""

    def loss(self, output: Any) -> Tensor | None:
        """The policy's own loss in what forward returned; None where it computes none."""
        return find_loss(output)

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """``output`` with its loss replaced.

        ``logs`` (0-d, detached: ``action_loss``, ``sf_loss``, ``sf_cosine``, ``sf_weight``; empty when nothing was
        aligned) are added where the framework has a place for them.
        """
        return replace_loss(output, loss)
