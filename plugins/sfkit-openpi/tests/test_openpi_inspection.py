"""What `sfkit inspect` finds on a policy whose blocks are never called and whose loss is not reduced."""

from __future__ import annotations

from sfkit_tools import inspect_policy
from tiny_openpi import CAMERAS

from sfkit import Span


def test_openpi_without_block_calls_and_with_an_unreduced_loss(standin) -> None:
    found = inspect_policy(standin.build(), standin.batch())
    assert dict(found.options) == {
        "blocks": "paligemma_with_expert.paligemma.model.language_model.layers",
        "tokens": Span(0, 48),
        "grid": (3, 4, 4),
        "images": tuple(f"observation.images.{camera}" for camera in CAMERAS),
        "pixels": "[-1,1]",
        "loss": "output",
    }
    assert found.taps[1].path.endswith("language_model.layers.1.input_layernorm")
    assert all(tap.trained for tap in found.taps)
    assert any("without a negative element" in note for note in found.notes)
