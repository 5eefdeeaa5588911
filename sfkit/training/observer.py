"""What watches a training step without being part of it: the self-check, the health monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from sfkit.training.taps import TapSite
from sfkit.views.types import FeatureMap, Views

if TYPE_CHECKING:
    from sfkit.training.gradients import GradientSums
    from sfkit.training.pair import Alignment


class StepObserver:
    """Sees each stage of the steps from ``next_step`` on. Every method does nothing by default.

    Steps at which nothing is aligned are not observed, and neither is a forward that backward recomputes.

    Attributes:
        next_step: The next step to observe, in steps of the schedule; infinite: none any more.
        reads_gradients: Whether gradients are measured in the steps that it observes.
        reads_maps: Whether the compared maps are kept in those steps.
        key: Under which its state is saved.
    """

    next_step: float = 0
    reads_gradients: ClassVar[bool] = False
    reads_maps: ClassVar[bool] = False
    key: ClassVar[str] = ""

    def begin(self, step: int) -> None:
        """A step begins; the same steps on all ranks."""

    def captured(self, views: Views, students: Mapping[TapSite, FeatureMap]) -> None:
        """The policy's forward has run; the teachers have not.

        Args:
            views: What the student saw.
            students: Visual tokens with gradient.
        """

    def aligned(self, views: Views, students: Mapping[TapSite, FeatureMap], results: Sequence[Alignment]) -> None:
        """The pairs are compared.

        Args:
            views: What the student saw.
            students: Visual tokens with gradient.
            results: Of each pair.
        """

    def attached(self, loss: Tensor) -> None:
        """The alignment loss was added to ``loss``, ``()`` or ``(b, ...)``, which forward returns."""

    def gradients(self, step: int, sums: GradientSums) -> None:
        """What the backward pass of an observed step has measured, over all ranks; called as the next step begins."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, written by ``SpatialForcing.save``."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
