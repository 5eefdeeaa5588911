"""pi0-FAST (``lerobot.policies.pi0_fast``): pi0's views, and actions that are words behind the text."""

from __future__ import annotations

from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.normalization import Batch
from sfkit_lerobot.pi0 import PI0Adapter

_ACTION_TOKENS = "action.tokens"


class PI0FastAdapter(PI0Adapter):
    """Sequence: the views that are there, then the missing ones (masked), then text with the state in it, then actions.

    Visual tokens never attend to the words of the action. Nothing is frozen by default.
    """

    name = "pi0_fast"

    def _expected_length(self, batch: Batch, views: int, size: Size) -> int | None:
        length, actions = super()._expected_length(batch, views, size), batch.get(_ACTION_TOKENS)
        return None if length is None or actions is None else length + int(actions.shape[1])
