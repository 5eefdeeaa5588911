"""The teacher interface."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfkit.errors import ConfigError, TeacherMemoryError
from sfkit.registry.component import AnyOptions, Configurable
from sfkit.views.types import FeatureMap, Views


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


class Teacher(Configurable, ABC):
    """A frozen source of features on a grid.

    Authors write ``load``, ``encode``, ``num_layers`` and ``dim``. The core freezes what ``load`` returns, keeps it in
    eval mode and off the policy's module tree (so it is in no ``state_dict``, optimizer, DDP broadcast or EMA), places
    it on the policy's device, and calls ``encode`` under ``torch.inference_mode`` with the global random state guarded.

    Attributes, of the class, or of the object where options decide:
        name: Registered name.
        license: License of the weights (SPDX where there is one); said at wrap time and in what is published.
        requires: Optional fields of :class:`~sfkit.views.types.Views` that it cannot do without.
        drops_absent: The core runs it on present views only (grouping samples by which views they have), so that an
            absent camera never touches a real one. Set it to False only where views are independent and cost nothing.
    """

    license: str
    requires: frozenset[str] = frozenset()
    drops_absent: ClassVar[bool] = True

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers are numbered 1 to ``num_layers``."""

    @property
    def default_layer(self) -> int:
        """The layer to align with when the user names none."""
        return self.num_layers

    @abstractmethod
    def dim(self, layer: int) -> int:
        """Width of the features of a layer."""

    @property
    def noncommercial(self) -> bool:
        """Whether the license of the weights is recorded as one that forbids commercial use."""
        return re.search(r"(?i)\bNC\b|non-?commercial", self.license) is not None

    @property
    def identity(self) -> dict[str, str]:
        """What is recorded beside a trained policy: name, license and, where there are weights, which ones."""
        return {"name": self.name, "license": self.license}

    def load(self, device: torch.device) -> nn.Module | None:
        """Build the network with its weights, on ``device``; None when there is no network."""
        return None

    def memory(self, views: tuple[int, int, int, int], layers: Sequence[int], device: torch.device) -> Memory | None:
        """Estimate what ``load`` and one ``encode`` take, before either; None where it is nothing to speak of.

        Args:
            views: Samples, views, height and width of the student's views.
            layers: Layers wanted.
            device: Where it would run.
        """
        return None

    @property
    def memory_advice(self) -> str:
        """Which options reduce the memory; said when it runs out."""
        return "Reduce the batch size."

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        """Gather statistics over ranks. Called on every rank in every training step, before ``encode``.

        Args:
            batch: The views and the student's grid; None on a rank that does not align in this step.
        """

    @abstractmethod
    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        """Compute features.

        Args:
            model: What ``load`` returned, frozen, in eval mode, on the device of ``views``.
            views: The student's views, with every field in ``requires`` present.
            layers: Layers wanted; compute no more than the deepest.
            grid: The student's grid, a hint: the core resamples whatever grid comes back.

        Returns:
            One map for each layer, over the whole view (letterbox included), mask False where a value means nothing.
            They must stay as they are until the backward pass, which may read them again.
        """

    def attention_heads(self, block: int) -> tuple[int, int]:
        """Number of heads of a block, from 1 to ``num_layers``, and channels of each.

        Raises:
            ConfigError: This teacher gives no queries and keys.
        """
        raise ConfigError(
            f"Teacher {self.name!r} gives no queries and keys.",
            "Choose a teacher that does, such as hf:facebook/dinov2-base, or an objective that reads features.",
        )

    def encode_with_attention(
        self,
        model: nn.Module | None,
        views: Views,
        layers: Sequence[int],
        blocks: Sequence[int],
        grid: tuple[int, int],
    ) -> list[FeatureMap]:
        """As :meth:`encode`, in the same run with the queries and keys of some blocks.

        Args:
            model: This and the next are as in :meth:`encode`.
            views: Likewise.
            layers: Layers wanted, may be empty.
            blocks: Blocks whose queries and keys are wanted.
            grid: As in :meth:`encode`.

        Returns:
            The maps of the layers, then those of the blocks: ``2 * heads * channels`` wide, queries (already scaled)
            before keys.
        """
        raise NotImplementedError(f"{type(self).__name__} has attention_heads but no encode_with_attention.")

    def state(self) -> dict[str, Tensor]:
        """Small tensors that a resumed run must have to give the same targets (statistics; never weights)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        if state:
            raise ValueError(f"Teacher {self.name!r} keeps no state, got {sorted(state)}.")


def license_note(identity: Mapping[str, str]) -> str:
    """The sentence about a teacher whose license is non-commercial, from its :attr:`Teacher.identity`."""
    which = f" ({identity['weights']})" if "weights" in identity else ""
    return (
        f"the weights of teacher {identity['name']!r}{which} are licensed {identity['license']}, for non-commercial "
        "use only; ask your lawyer whether that extends to a policy trained with them."
    )
