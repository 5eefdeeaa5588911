"""Running a teacher: loading it late, keeping it frozen and out of the policy, and hiding absent cameras from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfkit.errors import ViewsError, log_info
from sfkit.teachers.base import Teacher, explain_out_of_memory
from sfkit.utils.runtime import is_recompute_forward, own_rng
from sfkit.views.types import FeatureMap, Views


class TeacherRunner:
    """Owns a teacher's network. Deliberately no ``nn.Module``: nothing of it may enter the policy's module tree.

    ``deepcopy`` shares it (an EMA copy needs no second teacher); pickle drops the network, which is loaded again when
    first needed, and keeps the teacher's small state.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.runs = 0
        self._model: nn.Module | None = None
        self._loaded = False
        self._device: torch.device | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherRunner:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_loaded": False, "_device": None}

    @torch.no_grad()
    def features(
        self,
        views: Views,
        layers: Sequence[int],
        grid: tuple[int, int],
        explain: Callable[[str], str] = lambda field: "",
        blocks: Sequence[int] = (),
    ) -> list[FeatureMap]:
        """Features of all views, masked where a view is absent.

        Args:
            views: What the student saw.
            layers: Layers wanted.
            grid: The student's grid.
            explain: Says of a missing field of ``views`` why it is missing.
            blocks: Blocks whose queries and keys are wanted; their maps come after those of the layers.

        Raises:
            ViewsError: ``views`` lack a field that the teacher requires.
        """
        missing = sorted(name for name in self.teacher.requires if getattr(views, name) is None)
        if missing:
            reasons = [reason for reason in map(explain, missing) if reason]
            raise ViewsError(
                f"Teacher {self.teacher.name!r} needs {', '.join(missing)}, which this batch does not have."
                + "".join(f" {reason}" for reason in reasons),
                "Give cameras=... to SpatialForcing.wrap (for LeRobot: sfkit_lerobot.camera_rig(dataset)) and the maps "
                "that it names in the batch, or choose another teacher.",
            )
        device = views.images.device
        self.runs += 1
        views = replace(views, images=views.images.float())
        doing = f"running teacher {self.teacher.name!r} on {tuple(views.images.shape)}"
        with (
            own_rng(device),
            torch.autocast(device.type, enabled=False),
            explain_out_of_memory(doing, self.teacher.memory_advice),
        ):
            model = self._place(views, layers or blocks)
            # Outside inference mode: statistics are communicated and kept, which inference tensors resent.
            if not is_recompute_forward():
                self.teacher.observe((views, grid))
            with torch.inference_mode():
                if not self.teacher.drops_absent:
                    return self._encode(model, views, layers, blocks, grid)
                return self._encode_present(model, views, layers, blocks, grid)

    @torch.no_grad()
    def participate_without_data(self) -> None:
        """Take part in what all ranks do together, in a training step in which this rank does not align."""
        self.teacher.observe(None)

    def release(self) -> None:
        """Let go of the network; it is loaded again if it is asked for again."""
        self._model, self._loaded, self._device = None, False, None

    def _place(self, views: Views, layers: Sequence[int]) -> nn.Module | None:
        device = views.images.device
        if not self._loaded:
            b, v, _, h, w = views.images.shape
            estimate = self.teacher.memory((b, v, h, w), layers, device)
            if estimate is not None:
                log_info(f"loading teacher {self.teacher.name!r}: {estimate} (for {b} samples of {v} views)")
            # Weights that are drawn at random are the same ones in every run, and after a resume.
            with own_rng(device, seed=0):
                self._model = self.teacher.load(device)
            self._loaded = True
        if self._model is not None and self._device != device:
            self._model.to(device).eval().requires_grad_(False)
            self._device = device
        return self._model

    def _encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], blocks: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        if blocks:
            return self.teacher.encode_with_attention(model, views, layers, blocks, grid)
        return self.teacher.encode(model, views, layers, grid)

    def _encode_present(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], blocks: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        present = views.present
        if bool(present.all()):
            return self._encode(model, views, layers, blocks, grid)
        rows = present.tolist()
        widths = [self.teacher.dim(layer) for layer in layers]
        widths += [2 * math.prod(self.teacher.attention_heads(block)) for block in blocks]
        maps: list[FeatureMap | None] = [None] * len(widths)
        for pattern in sorted({tuple(row) for row in rows}):
            columns = [i for i, there in enumerate(pattern) if there]
            if not columns:
                continue
            samples = torch.tensor([i for i, row in enumerate(rows) if tuple(row) == pattern], device=present.device)
            part = self._encode(model, views.select(samples, columns), layers, blocks, grid)
            maps = [
                _scatter(whole, new, samples, columns, present.shape) for whole, new in zip(maps, part, strict=True)
            ]
        return [
            _all_masked(width, present.shape, grid, views.images) if whole is None else whole
            for whole, width in zip(maps, widths, strict=True)
        ]


def _scatter(
    whole: FeatureMap | None, part: FeatureMap, samples: Tensor, columns: list[int], shape: torch.Size
) -> FeatureMap:
    if whole is None:
        values = part.values.new_zeros(*shape, *part.values.shape[2:])
        whole = FeatureMap(values, torch.zeros_like(values[..., 0], dtype=torch.bool))
    index = (samples[:, None], torch.as_tensor(columns, device=samples.device)[None])
    whole.values[index] = part.values.to(whole.values.dtype)
    whole.mask[index] = part.mask
    return whole


def _all_masked(dim: int, shape: torch.Size, grid: tuple[int, int], like: Tensor) -> FeatureMap:
    values = like.new_zeros(*shape, *grid, dim)
    return FeatureMap(values, torch.zeros_like(values[..., 0], dtype=torch.bool))
