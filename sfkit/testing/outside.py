"""A policy whose loss is computed by its training loop, as OpenVLA-OFT's is under an L1 head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.testing.policies import TinyAdapter, TinyPolicy


class OutsidePolicy(TinyPolicy):
    """Returns what it predicts, and a loss that no loop reads."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:  # type: ignore[override]
        """``actions``: a tuple of one ``(b, state_dim)``; and ``loss``, which means nothing."""
        prediction = self.act(batch)
        return {"loss": prediction.square().mean(), "actions": (prediction,), "steps": 1}


class OutsideAdapter(TinyAdapter):
    """Adapter of :class:`OutsidePolicy`."""

    loss_outside = True

    def with_loss(self, output: Any, loss: Tensor, logs: Any) -> Any:
        raise AssertionError("nobody reads the loss in this output")


def loop_loss(output: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """The loop's loss ``()`` from what forward returned."""
    return F.l1_loss(output["actions"][0], batch["action"])
