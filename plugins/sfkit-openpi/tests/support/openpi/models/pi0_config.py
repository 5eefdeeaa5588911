"""The configuration. Upstream: models/pi0_config.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pi0Config:
    """Upstream's settings, and the sizes of the stand-in.

    Attributes:
        pi05: The state is part of the prompt, and the time conditions the expert's norms.
        action_dim: Size of state and action.
        action_horizon: Actions in a chunk.
        max_token_len: Tokens of a prompt.
        width: Of the language model; the expert has half of it, the vision tower as well.
        num_layers: Blocks.
        image_size: Side of a view (224 upstream).
        patch: Side of a patch.
        dtype: ``"float32"``, or ``"bfloat16"``, upstream's default.
        pytorch_compile_mode: Of ``sample_actions``; None leaves it as it is. Upstream's default is "max-autotune".
    """

    pi05: bool = False
    action_dim: int = 4
    action_horizon: int = 3
    max_token_len: int = 5
    width: int = 32
    num_layers: int = 3
    image_size: int = 56
    patch: int = 14
    dtype: str = "float32"
    pytorch_compile_mode: str | None = None
