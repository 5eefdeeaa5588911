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
    """An estimate of memory, in bytes.

    Attributes:
        weights: Size of the network, in the dtypes that it is kept in.
        working: Peak of one forward beside the weights: activations and returned features.
    """

    weights: int
    working: int

    def __str__(self) -> str:
        return f"{_size(self.weights)} of weights and about {_size(self.working)} while it runs"


class Teacher(Configurable, ABC):
    """A frozen source of features on a grid.

    Authors set ``name`` and ``license`` and write ``num_layers``, ``dim`` and ``encode``, and ``load`` if there is a
    network. All other methods have defaults.

    The core calls ``load`` once. It freezes the network, puts it in eval mode on the policy's device, and keeps it out
    of the policy's modules: no ``state_dict``, optimizer, DDP broadcast or EMA holds it. It calls ``encode`` in each
    aligned step under ``torch.inference_mode``, and restores the global random state afterward.

    Attributes:
        name: Registered name.
        license: License of the weights (SPDX where there is one), shown at wrap time and saved with the policy.
        requires: Optional fields of :class:`~sfkit.views.types.Views` that ``encode`` needs. The core raises an error
            where one is missing. An instance may set it, where it depends on options.
        drops_absent: True: ``encode`` sees present views only (the core groups samples by their views), so that an
            absent camera never affects a real one. Set it to False only where views are independent and cost nothing.
    """

    license: str
    requires: frozenset[str] = frozenset()
    drops_absent: ClassVar[bool] = True

    def __init__(self, options: AnyOptions = None) -> None:
        self.configure(options)

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of layers; they count from 1."""

    @property
    def default_layer(self) -> int:
        """The layer to align with when the user names none: the last one by default."""
        return self.num_layers

    @abstractmethod
    def dim(self, layer: int) -> int:
        """Width of the features of a layer."""

    @property
    def noncommercial(self) -> bool:
        """Whether the license of the weights forbids commercial use."""
        # SPDX identifiers such as CC-BY-NC-4.0, and plain words.
        return re.search(r"(?i)\bNC\b|non-?commercial", self.license) is not None

    @property
    def identity(self) -> dict[str, str]:
        """What is saved with a trained policy: name, license and, where there are weights, which ones."""
        return {"name": self.name, "license": self.license}

    def load(self, device: torch.device) -> nn.Module | None:
        """Build the network with its weights, on ``device``; None when there is no network."""
        return None

    def memory(self, views: tuple[int, int, int, int], layers: Sequence[int], device: torch.device) -> Memory | None:
        """Estimate what ``load`` and one ``encode`` take, before either; None where it is negligible.

        Args:
            views: Samples, views, height and width of the student's views.
            layers: Requested layers.
            device: Where it would run.
        """
        return None

    @property
    def memory_advice(self) -> str:
        """Which options reduce the memory; the out-of-memory error shows it."""
        return "Reduce the batch size."

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        """Gather statistics over ranks. The core calls it on every rank in every training step, before ``encode``.

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
            views: The student's views. Each field in ``requires`` is present.
            layers: Requested layers; compute no more than the deepest.
            grid: Rows and columns of the student's grid, as a hint: the core resamples any grid to it.

        Returns:
            One map ``(b, v, *, *, dim(layer))`` for each layer, over the whole view (letterbox included), with mask
            False where a value means nothing. Do not change the tensors later: backward may read them again.
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
        self, model: nn.Module | None, views: Views, layers: Sequence[int], blocks: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        """As :meth:`encode`, together with the queries and keys of some blocks in the same forward.

        Args:
            model: As in :meth:`encode`.
            views: As in :meth:`encode`.
            layers: Requested layers, may be empty.
            blocks: Blocks whose queries and keys are requested.
            grid: As in :meth:`encode`.

        Returns:
            The maps of the layers, then those of the blocks: ``(b, v, *, *, 2 * heads * channels)``, queries (already
            scaled) before keys.
        """
        raise NotImplementedError(f"{type(self).__name__} has attention_heads but no encode_with_attention.")

    def state(self) -> dict[str, Tensor]:
        """Small tensors that a resumed run needs for the same targets (statistics; never weights)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        if state:
            raise ValueError(f"Teacher {self.name!r} keeps no state, got {sorted(state)}.")


def license_note(identity: Mapping[str, str]) -> str:
    """The sentence about a teacher whose license is non-commercial, from its :attr:`Teacher.identity`."""
    which = f" ({identity['weights']})" if "weights" in identity else ""
    return (
        f"the weights of teacher {identity['name']!r}{which} are licensed {identity['license']}, for non-commercial "
        "use only; ask your lawyer whether that extends to a policy trained with them."
    )


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Raise an out-of-memory error of the block again, with what ran and what reduces its memory.

    Raises:
        TeacherMemoryError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TeacherMemoryError(f"Out of memory while {what}: {str(error).splitlines()[0]}", advice) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU's allocator raises a bare RuntimeError.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"
