"""Running teachers: loaded late, frozen, kept out of the policy's modules, and blind to absent cameras."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfkit.errors import ShapeError, ViewsError, log_info
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.teachers.base import Teacher, explain_out_of_memory
from sfkit.training.contract import EVERY, FIRST, broken, form, is_finite
from sfkit.training.taps import TapSite
from sfkit.utils.runtime import own_rng
from sfkit.views.types import FeatureMap, Views

if TYPE_CHECKING:
    from sfkit.training.pair import AlignmentPair


def encode(
    pairs: Sequence[AlignmentPair],
    adapter: PolicyAdapter,
    call: ForwardCall,
    views: Views,
    students: Mapping[TapSite, FeatureMap],
    *,
    observe: bool = True,
) -> list[FeatureMap]:
    """The teacher's features for each pair; each teacher runs once for each frame that its pairs request.

    Args:
        pairs: What is aligned.
        adapter: Gives the views of future frames, and explains missing fields.
        call: Of the policy.
        views: What the student saw.
        students: Visual tokens; a teacher is given the grid of its first pair.
        observe: Whether teachers gather statistics; not where backward recomputes a forward.
    """
    found: dict[tuple[TeacherRunner, int, bool, int], FeatureMap] = {}
    explain = functools.partial(adapter.explain_missing, call=call)
    for runner, future in dict.fromkeys((pair.runner, pair.future) for pair in pairs):
        mine = [pair for pair in pairs if (pair.runner, pair.future) == (runner, future)]
        layers = sorted({pair.teacher_layer for pair in mine if not pair.reads_attention})
        blocks = sorted({pair.teacher_layer for pair in mine if pair.reads_attention})
        with torch.no_grad():
            seen = adapter.future_views(call, future) if future else views
        _, _, *grid, _ = students[mine[0].site].values.shape
        maps = runner.features(seen, layers, (grid[0], grid[1]), explain, blocks, observe=observe)
        names = [*((False, layer) for layer in layers), *((True, block) for block in blocks)]
        found.update({(runner, future, *name): one for name, one in zip(names, maps, strict=True)})
    return [found[pair.runner, pair.future, pair.reads_attention, pair.teacher_layer] for pair in pairs]


class TeacherRunner:
    """Owns a teacher's network. It is no ``nn.Module``: nothing of it may enter the policy's module tree.

    ``deepcopy`` shares it (an EMA copy needs no second teacher); pickle drops the network, which is loaded again on
    first use, and keeps the teacher's small state.

    Attributes:
        teacher: The teacher.
        num_forwards: How often it ran.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.num_forwards = 0
        self._widths: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
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
        *,
        observe: bool = True,
    ) -> list[FeatureMap]:
        """Features of all views, masked where a view is absent.

        Args:
            views: What the student saw.
            layers: Requested layers.
            grid: The student's grid.
            explain: From a missing field of ``views`` to why it is missing.
            blocks: Blocks whose queries and keys are requested; their maps come after those of the layers.
            observe: Whether the teacher gathers statistics.

        Raises:
            ViewsError: ``views`` lack a field that the teacher requires.
            ComponentError: The teacher returned what its interface does not allow.
        """
        missing = sorted(name for name in self.teacher.requires if getattr(views, name) is None)
        if missing:
            reasons = dict.fromkeys(reason for reason in map(explain, missing) if reason)
            provide = "Put depth maps into the batch" if missing == ["depth"] else "Provide them"
            raise ViewsError(
                f"Teacher {self.teacher.name!r} needs {', '.join(missing)}, which this batch does not have."
                + "".join(f" {reason}" for reason in reasons),
                f"{provide}, or choose a teacher that needs images alone.",
            )
        device = views.images.device
        self.num_forwards += 1
        if views.images.dtype != torch.float32:
            views = replace(views, images=views.images.float())
        doing = f"running teacher {self.teacher.name!r} on {tuple(views.images.shape)}"
        with (
            own_rng(device),
            torch.autocast(device.type, enabled=False),
            explain_out_of_memory(doing, self.teacher.memory_advice),
        ):
            model = self._load(views, layers or blocks)
            # Outside inference mode: statistics are communicated and kept, which inference tensors do not support.
            if observe:
                self.teacher.observe((views, grid))

            def run(seen: Views) -> list[FeatureMap]:
                maps = self._encode(model, seen, layers, blocks, grid)
                self._check_maps(maps, seen, [*layers, *blocks], self._widths_of(layers, blocks))
                self._check_model(model)
                return maps

            with torch.inference_mode():
                if not self.teacher.drops_absent or bool(views.present.all()):
                    return run(views)
                return _only_present(run, views, self._widths_of(layers, blocks), grid)

    def _encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], blocks: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        """One call of the teacher."""
        try:
            if blocks:
                return self.teacher.encode_with_attention(model, views, layers, blocks, grid)
            return self.teacher.encode(model, views, layers, grid)
        except ShapeError as error:
            if not error.message.startswith("FeatureMap."):
                raise
            must = "build each map as sfkit.FeatureMap documents"
            found = error.message.removeprefix("FeatureMap.").removesuffix(".")
            raise broken("teacher", self.teacher, f"built a map whose {found}", must) from error

    def _widths_of(self, layers: Sequence[int], blocks: Sequence[int]) -> list[int]:
        """Channels of each map. The teacher is asked once."""
        key = (tuple(layers), tuple(blocks))
        if key not in self._widths:
            heads = [self.teacher.attention_heads(block) for block in blocks]
            self._widths[key] = [*map(self.teacher.dim, layers), *(2 * math.prod(each) for each in heads)]
        return self._widths[key]

    @property
    def _looks(self) -> bool:
        """Whether this forward is one of those whose values are checked."""
        return self.num_forwards <= FIRST or self.num_forwards % EVERY == 1

    def _check_maps(self, maps: object, views: Views, layers: Sequence[int], widths: Sequence[int]) -> None:
        """Check what ``encode`` returned: for each layer a map of its width, ``(b, v, *, *, width)``."""
        must = f"return a list of {len(widths)} FeatureMap, one for each layer"
        if not isinstance(maps, (list, tuple)) or len(maps) != len(widths):
            count = f" of {len(maps)}" if isinstance(maps, (list, tuple)) else ""
            raise broken("teacher", self.teacher, f"returned {form(maps)}{count}", must)
        (b, v), device = views.images.shape[:2], views.images.device
        for one, layer, width in zip(maps, layers, widths, strict=True):
            if not isinstance(one, FeatureMap):
                raise broken("teacher", self.teacher, f"returned {form(one)} for layer {layer}", must)
            values = one.values
            fits = values.is_floating_point() and min(values.shape[2:4]) > 0 and values.device == device
            if not fits or (*values.shape[:2], values.shape[-1]) != (b, v, width):
                must = f"return floating-point values of shape ({b}, {v}, *, *, {width}), as dim says, on {device}"
                returned = f"returned {form(values)} on {values.device} for layer {layer}"
                raise broken("teacher", self.teacher, returned, must)
            if self._looks and not is_finite(values, one.mask):
                must = "set the mask to False where a value means nothing"
                raise broken("teacher", self.teacher, f"returned NaN or infinity for layer {layer}", must)

    def _check_model(self, model: nn.Module | None) -> None:
        """Check that ``encode`` left the network as it was; all of its modules in the first forwards."""
        if model is None or not (model.training or self._looks):
            return
        if any(module.training for module in model.modules()):
            raise broken("teacher", self.teacher, "put its network into training mode", "leave it in eval mode")
        if any(parameter.requires_grad for parameter in model.parameters()):
            raise broken("teacher", self.teacher, "made its network trainable", "leave it frozen")

    @torch.no_grad()
    def participate_without_data(self) -> None:
        """Take part in the collectives of a training step in which this rank does not align."""
        self.teacher.observe(None)

    def release(self) -> None:
        """Drop the network; it is loaded again on next use."""
        self._model, self._loaded, self._device = None, False, None

    def _load(self, views: Views, layers: Sequence[int]) -> nn.Module | None:
        """The frozen network, on the device of the views."""
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


def _only_present(
    run: Callable[[Views], list[FeatureMap]], views: Views, widths: Sequence[int], grid: tuple[int, int]
) -> list[FeatureMap]:
    """Run once for each combination of present cameras, so that no absent one touches a real one."""
    rows, shape = views.present.tolist(), views.present.shape
    maps: list[FeatureMap | None] = [None] * len(widths)
    for pattern in sorted({tuple(row) for row in rows}):
        columns = [i for i, there in enumerate(pattern) if there]
        if not columns:
            continue
        samples = torch.tensor([i for i, row in enumerate(rows) if tuple(row) == pattern], device=views.present.device)
        parts = run(views.select(samples, columns))
        maps = [_scatter(whole, part, samples, columns, shape) for whole, part in zip(maps, parts, strict=True)]
    return [
        _all_masked(width, shape, grid, views.images) if whole is None else whole
        for whole, width in zip(maps, widths, strict=True)
    ]


def _scatter(
    whole: FeatureMap | None, part: FeatureMap, samples: Tensor, columns: list[int], shape: torch.Size
) -> FeatureMap:
    """Put the maps of ``(n,)`` samples and some views, ``(n, len(columns), gh, gw, d)``, in the place of theirs."""
    if whole is None:
        values = part.values.new_zeros(*shape, *part.values.shape[2:])
        whole = FeatureMap(values, torch.zeros_like(values[..., 0], dtype=torch.bool))
    index = (samples[:, None], torch.as_tensor(columns, device=samples.device)[None])
    whole.values[index] = part.values.to(whole.values.dtype)
    whole.mask[index] = part.mask
    return whole


def _all_masked(dim: int, shape: torch.Size, grid: tuple[int, int], like: Tensor) -> FeatureMap:
    """A map without a valid token, ``(b, v, gh, gw, dim)``, on the device of ``like``, ``(*)``."""
    values = like.new_zeros(*shape, *grid, dim)
    return FeatureMap(values, torch.zeros_like(values[..., 0], dtype=torch.bool))
