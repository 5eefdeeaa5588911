"""Choices of several layers that look at no data."""

from __future__ import annotations

from sfkit.errors import ConfigError


def uniform(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at equal distances between the embeddings and the last block, both left out.

    Raises:
        ConfigError: There are not so many.
    """
    _check(num_layers, count, num_layers - 1)
    return tuple(round(index * num_layers / (count + 1)) for index in range(1, count + 1))


def end_anchored(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at a whole stride, counted back from the last block, which is among them.

    Raises:
        ConfigError: There are not so many.
    """
    _check(num_layers, count, num_layers)
    stride = num_layers // count
    return tuple(num_layers - stride * index for index in reversed(range(count)))


def _check(num_layers: int, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ConfigError(f"{count} layers cannot be spread over {num_layers} blocks.", f"Choose 1 to {most}.")
