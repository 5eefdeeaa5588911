"""A vision model of transformers, reduced to the patch tokens of chosen layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sfkit.errors import ShapeError
from sfkit.teachers.base import is_out_of_memory
from sfkit_transformers.families import Family, Shape

Module = TypeVar("Module", bound=nn.Module)
Norms = Literal["last", "all", "none"]

#: Parts of a model that patch tokens do not need.
UNUSED = ("head", "pooler", "pool", "predictor")


class _EnoughError(Exception):
    """Ends the model's forward after the deepest requested layer."""


class Backbone(nn.Module):
    """Runs the model's own forward up to the deepest requested layer, and keeps only the requested layers.

    Args:
        model: A vision model of transformers. Parts that patch tokens do not need are removed from it.
        family: Its family.
        shape: Its sizes.
        mean: Mean of the model's normalization, for images in [0, 1].
        std: Standard deviation of the model's normalization, for images in [0, 1].
        norms: Layers that the model's final norm applies to: the last, all, or none.
        prefix: Number of tokens before the patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        shape: Shape,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        norms: Norms,
        prefix: int,
    ) -> None:
        super().__init__()
        for name in UNUSED:
            _remove(model, name)
        self.model = model
        self.shape, self.feed, self.norms, self.prefix = shape, family.feed, norms, prefix
        # In a tuple, so that the blocks, which self.model holds, are not registered twice.
        self.blocks = tuple(_blocks(model, len(shape.widths)))
        self._norm = (None if family.norm is None else _find(model, family.norm),)
        # Buffers, so that they move with the module.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._flexible = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._attention = family.attention
        self._wanted: frozenset[int] = frozenset()
        self._wanted_blocks: frozenset[int] = frozenset()
        self._found: dict[int, Tensor] = {}
        self._entered: dict[int, Tensor] = {}
        self.blocks[0].register_forward_pre_hook(_in_float32)
        for number, block in enumerate(self.blocks, 1):
            # compile_blocks compiles a block's forward only, so that these hooks still run.
            block.register_forward_hook(functools.partial(self._take, number))

    def forward(self, images: Tensor, layers: Sequence[int], blocks: Sequence[int] = ()) -> list[Tensor]:
        """Patch tokens of the requested layers.

        Args:
            images: ``(n, 3, h, w)`` in [0, 1], sides multiples of the patch.
            layers: Layers, from 1, in any order.
            blocks: Blocks whose queries and keys are requested.

        Returns:
            One ``(n, rows, columns, d)`` tensor for each layer, then one ``(n, rows, columns, 2 * d)`` tensor for each
            block: its scaled queries and its keys, concatenated.

        Raises:
            ShapeError: The model's number of tokens does not fit, or the model does not accept this grid.
        """
        rows, columns = (side // self.shape.patch for side in images.shape[-2:])
        self._wanted, self._wanted_blocks = frozenset(layers), frozenset(blocks)
        self._found, self._entered = {}, {}
        try:
            self.model(**self._inputs((images - self.mean) / self.std, rows, columns))
        except _EnoughError:
            maps = [self._grid(self._found[layer], layer, rows, columns) for layer in layers]
            return maps + [self._queries_and_keys(block, rows, columns) for block in blocks]
        except (RuntimeError, ValueError) as error:
            own = getattr(self.model.config, "image_size", None)
            if tuple(images.shape[-2:]) in ((own, own), own) or is_out_of_memory(error):
                raise
            raise ShapeError(
                f"{type(self.model).__name__} takes no images of {tuple(images.shape[-2:])} pixels: {error}",
                f"It is made for {own}: set size={own} and fit=pad or fit=stretch.",
            ) from error
        finally:
            self._wanted, self._found, self._entered = frozenset(), {}, {}
        raise ShapeError(
            f"{type(self.model).__name__} ended before its layer {max([*layers, *blocks])} ran.",
            "This kind of model does not run its blocks in order: it cannot be a teacher.",
        )

    def compile_blocks(self) -> None:
        """Compile the forward of each block; they share one compiled program."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward)

    # ------------------------------------------------------------------------------------------------------------ in

    def _inputs(self, images: Tensor, rows: int, columns: int) -> dict[str, object]:
        """Arguments of the model's forward for normalized images ``(n, 3, h, w)``."""
        if self.feed == "clip":
            self._set_positions(rows, columns)
            frames = int(self.model.config.tubelet_size)  # type: ignore[union-attr, arg-type]
            return {"pixel_values_videos": images.unsqueeze(1).expand(-1, frames, -1, -1, -1), "skip_predictor": True}
        if self.feed == "patches":
            side = self.shape.patch
            cut = images.reshape(len(images), 3, rows, side, columns, side)
            # The model reads the sizes in Python; on the CPU this does not synchronize with the device.
            sizes = torch.tensor([[rows, columns]]).expand(len(images), 2)
            flat = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            return {"pixel_values": flat, "pixel_attention_mask": None, "spatial_shapes": sizes}
        return {"pixel_values": images, **({"interpolate_pos_encoding": True} if self._flexible else {})}

    def _set_positions(self, rows: int, columns: int) -> None:
        """Set the grid of V-JEPA 2's rotary attention, which otherwise is that of its configuration for any image."""
        if rows > columns:
            raise ShapeError(
                f"{type(self.model).__name__} cannot look at an image of {rows}x{columns} patches: "
                "its position of a patch wraps at a square.",
                "Set fit=pad or fit=stretch.",
            )
        rotary: list[Any] = [m for block in self.blocks for m in block.modules() if hasattr(m, "grid_size")]
        for module in rotary:
            module.grid_size = columns

    # ----------------------------------------------------------------------------------------------------------- out

    def _take(
        self, number: int, block: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        if number in self._wanted:
            self._found[number] = output[0] if isinstance(output, tuple) else output
        if number in self._wanted_blocks:
            self._entered[number] = arguments[0]
        if number == max(self._wanted | self._wanted_blocks):
            raise _EnoughError

    def _queries_and_keys(self, number: int, rows: int, columns: int) -> Tensor:
        """Scaled queries and keys of a block, ``(n, rows, columns, 2 * d)``, recomputed from the block's input.

        Hooks inside the block would not run where it is compiled.
        """
        assert self._attention is not None
        norm, query, key = (_find(self.blocks[number - 1], name) for name in self._attention)
        entered = norm(self._patches(self._entered[number], rows, columns))
        scale = (entered.shape[-1] // int(self.model.config.num_attention_heads)) ** -0.5  # type: ignore[union-attr, arg-type]
        both = torch.cat([query(entered) * scale, key(entered)], -1)
        return both.reshape(len(both), rows, columns, -1)

    def _grid(self, tokens: Tensor, layer: int, rows: int, columns: int) -> Tensor:
        """Tokens ``(n, prefix + rows * columns, d)``, or a stage ``(n, d, r, c)``, to ``(n, rows, columns, d)``."""
        if tokens.ndim == 4:  # a convolutional stage has a grid of its own
            return self._normed(tokens.permute(0, 2, 3, 1), layer)
        patches = self._patches(tokens, rows, columns)
        return self._normed(patches, layer).reshape(len(tokens), rows, columns, -1)

    def _patches(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """``(n, prefix + rows * columns, d)`` to the patch tokens, ``(n, rows * columns, d)``."""
        before = tokens.shape[1] - rows * columns
        if before != self.prefix:
            raise ShapeError(
                f"{type(self.model).__name__} gives {tokens.shape[1]} tokens for an image of {rows}x{columns} patches,"
                f" that is {before} more, where {self.prefix} were expected before the first patch.",
                f"If they do stand before the patches, set prefix_tokens={before}."
                if before >= 0
                else "This kind of model merges or drops patches: it cannot be a teacher.",
            )
        return tokens[:, self.prefix :]

    def _normed(self, tokens: Tensor, layer: int) -> Tensor:
        """Apply the final norm to ``(..., d)`` where the option ``norm`` says so."""
        (norm,) = self._norm
        if norm is None or self.norms == "none" or (self.norms == "last" and layer < len(self.blocks)):
            return tokens
        normed: Tensor = norm(tokens)
        return normed


def _in_float32(block: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Cast the input of the first block to float32, since autocast may leave the embeddings in bfloat16."""
    return (arguments[0].float(), *arguments[1:]) if arguments else None


def _remove(model: nn.Module, name: str) -> None:
    for owner in model.modules():
        if owner._modules.get(name) is not None:
            owner._modules[name] = None


def _blocks(model: nn.Module, count: int) -> nn.ModuleList:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise ShapeError(
            f"{type(model).__name__} has no list of {count} blocks.",
            "This kind of model does not run its blocks in order: it cannot be a teacher.",
        )
    return _outermost(found)


def _find(model: nn.Module, name: str) -> nn.Module:
    found: list[tuple[str, nn.Module]] = [
        (path, m) for path, m in model.named_modules() if path.rpartition(".")[2] == name
    ]
    if not found:
        raise ShapeError(
            f"{type(model).__name__} has no module {name!r}, its final norm.",
            "This release of transformers names it differently: set norm=none, or try another release.",
        )
    return _outermost(found)


def _outermost(found: list[tuple[str, Module]]) -> Module:
    """The module with the fewest dots in its path."""
    return min(found, key=lambda item: item[0].count("."))[1]
