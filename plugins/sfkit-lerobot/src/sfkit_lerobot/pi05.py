"""pi0.5 (``lerobot.policies.pi05``): pi0's views, with the state as words in the prompt."""

from __future__ import annotations

from torch import Tensor

from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.normalization import Batch
from sfkit_lerobot.pi0 import PI0Adapter

_STATE = "observation.state"


class PI05Adapter(PI0Adapter):
    """Sequence: the views that are there, then the missing ones (masked), then past states if any, then text.

    LeRobot after 0.6.1 can give pi0.5 a short memory. Each camera is then a clip ``(b, t, 3, h, w)``, whose past frames
    are mixed into the tokens of the last one inside the vision tower and go no further: what is aligned is the last
    frame. Past states (``use_proprioceptive_memory``) become tokens behind the views.
    """

    name = "pi05"

    def prepare(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        pictures, masks = super().prepare(batch)
        return (
            [picture[:, -1] if picture.ndim == 5 else picture for picture in pictures],
            [mask[:, -1] if mask.ndim == 2 else mask for mask in masks],
        )

    def _expected_length(self, batch: Batch, views: int, size: Size) -> int | None:
        length = super()._expected_length(batch, views, size)
        return None if length is None else length + self._past_states(batch)

    def _past_states(self, batch: Batch) -> int:
        """Tokens that states have of their own; without that memory the state is a part of the text."""
        if not getattr(self.policy.config, "use_proprioceptive_memory", False):
            return 0
        state: Tensor = batch[_STATE]
        return int(state.shape[1]) if state.ndim == 3 else 1
