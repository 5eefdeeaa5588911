"""How much memory a teacher will take, told before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sfkit.errors import TeacherMemoryError


@dataclass(frozen=True)
class Memory:
    """An estimate, in bytes.

    Attributes:
        weights: Of the network, in the dtypes in which it is kept.
        working: At the peak of one run, beside the weights: activations and the features that are handed out.
    """

    weights: int
    working: int

    def __str__(self) -> str:
        return f"{_size(self.weights)} of weights and about {_size(self.working)} while it runs"


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Say of an out-of-memory error in the block who ran out, and what reduces it.

    Raises:
        TeacherMemoryError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TeacherMemoryError(f"Out of memory while {what}: {_first_line(error)}", advice) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU's allocator raises a bare RuntimeError.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"
