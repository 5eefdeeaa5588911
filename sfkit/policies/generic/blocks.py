"""The taps of a stack of decoder blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sfkit.errors import AdapterError
from sfkit.policies.base import TapPoint
from sfkit.policies.generic.options import GenericOptions
from sfkit.policies.generic.paths import find_module

#: Names in use for the norm that a pre-norm block begins with. The norm after attention has other names.
FIRST_NORMS = (
    "input_layernorm", "ln_1", "norm1", "norm_1", "attention_norm", "attn_norm", "layer_norm1", "ln1",
    "self_attn_layer_norm", "input_norm", "pre_attn_norm", "pre_attention_layernorm",
)  # fmt: skip
#: Names in use for the norm after the last block, beside the blocks.
FINAL_NORMS = (
    "norm", "final_layernorm", "ln_f", "final_norm", "norm_f", "final_layer_norm", "post_layernorm", "ln_post",
)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """Decoder blocks, and the taps before and after each.

    Attributes:
        points: One tap for each layer, 0 to the number of blocks; the last is None where no module is known to follow
            the last block.
        dim: Width of the residual stream; None where no norm gives it.
    """

    points: tuple[TapPoint | None, ...]
    dim: int | None

    @classmethod
    def of(cls, policy: nn.Module, options: GenericOptions) -> Stack:
        """Resolve the paths of the options.

        Raises:
            AdapterError: A path leads nowhere, or there are no blocks.
        """
        named = list(_blocks(policy, options))
        if not named:
            raise AdapterError(f"blocks={options.blocks!r} holds no module.", "`sfkit inspect` lists candidates.")
        points: list[TapPoint | None] = [first_tap(block, path, options.norm) for path, block in named]
        points.append(_after(policy, named[-1][0], options.final_norm))
        widths = (norm_width(point.module) for point in points if point is not None)
        return cls(tuple(points), options.dim or next((width for width in widths if width), None))


def _blocks(policy: nn.Module, options: GenericOptions) -> Iterable[tuple[str, nn.Module]]:
    where = options.blocks
    if isinstance(where, str):
        holder = find_module(policy, where, "blocks")
        return [(f"{where}.{name}", block) for name, block in holder.named_children()]
    if isinstance(where, tuple):
        return [(path, find_module(policy, path, "blocks")) for path in where]
    # For messages: a function returns modules without their paths.
    names = {id(module): name for name, module in policy.named_modules()}
    return [(names.get(id(block), f"block {index}"), block) for index, block in enumerate(where(policy))]


def first_tap(block: nn.Module, path: str, norm: str | None = None) -> TapPoint:
    """The tap in front of a block: the input of the norm that it begins with, else its own input.

    Args:
        block: The block.
        path: Where it is, for messages.
        norm: Path of the norm within it; ``""`` for the block itself; None to look for a name in use.

    Raises:
        AdapterError: It has no module of that name.
    """
    if norm is None:
        names = (name for name in FIRST_NORMS if isinstance(getattr(block, name, None), nn.Module))
        # A post-norm block, such as torch's own by default, has no norm on the residual stream.
        norm = "" if getattr(block, "norm_first", True) is False else next(names, "")
    return TapPoint(find_module(block, norm, "norm"), f"{path}.{norm}") if norm else TapPoint(block, path)


def _after(policy: nn.Module, last: str, final_norm: str | None) -> TapPoint | None:
    if final_norm is not None:
        return TapPoint(find_module(policy, final_norm, "final_norm"), final_norm)
    # The norm is beside the list of blocks: of model.layers.31 the holder is model.
    holder = last.rpartition(".")[0].rpartition(".")[0]
    try:
        parent = find_module(policy, holder, "blocks")
    except AdapterError:
        return None
    for name in FINAL_NORMS:
        norm = getattr(parent, name, None)
        if isinstance(norm, nn.Module):
            return TapPoint(norm, f"{holder}.{name}" if holder else name)
    return None


def norm_width(module: nn.Module) -> int | None:
    """Width of a norm, from its weight; None for another module."""
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, torch.Tensor) and weight.ndim == 1 else None
