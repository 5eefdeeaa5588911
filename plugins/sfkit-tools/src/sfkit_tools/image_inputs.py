"""Candidates for the images in a batch, and changing a part of one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfkit.errors import ViewsError
from sfkit.policies.generic.options import GenericOptions, ImageTokens
from sfkit.policies.generic.paths import describe, find_value
from sfkit.policies.generic.pixels import to_views

_NAMES = ("image", "pixel", "rgb", "camera", "picture", "frame", "observation")
_DEEPEST = 5
_SMALLEST = 8

Box = tuple[slice, slice]


@dataclass(frozen=True)
class ImageReading:
    """A guess at where the images are, and how they lie there.

    Attributes:
        paths: Path of the images, or one path for each view: the option ``images`` of the generic adapter.
        given: What is there: a tensor, a tuple of one for each view, or lists of images for each sample.
        views: Number of views.
        layout: The adapter's option of that name; None where the shape tells it.
        merge: Of layout ``"patches"``.
        cells: Rows and columns of visual tokens of layout ``"patches"``, which the batch tells; else None.
    """

    paths: str | tuple[str, ...]
    given: Any
    views: int
    layout: Any = None
    merge: int = 2
    cells: tuple[int, int] | None = None

    def options(self, **more: Any) -> GenericOptions:
        """What is known so far, as options of the adapter."""
        fixed = {"blocks": "x", "tokens": ImageTokens(0), "grid": (self.views, *(self.cells or (1, 1)))}
        return GenericOptions(**{**fixed, **self.told(), **more})

    def told(self) -> dict[str, Any]:
        """The options that say all this."""
        told: dict[str, Any] = {"images": self.paths}
        if self.layout is not None:
            told["layout"] = self.layout
        if self.layout == "patches" and self.merge != 2:
            told["merge"] = self.merge
        channels = 3
        if isinstance(self.given, Tensor) and self.layout == "b (v c) h w":
            channels = self.given.shape[1] // self.views
        if channels > 3:
            told["channels"] = (0, 1, 2)
        return told

    def reordered(self, order: Sequence[int]) -> ImageReading:
        """With the cameras in another order, where they come one by one."""
        if not isinstance(self.given, tuple):
            return self
        return replace(self, paths=tuple(self.paths[i] for i in order), given=tuple(self.given[i] for i in order))

    def raw(self) -> Tensor:
        """``(b, v, 3, h, w)`` as given; raises ViewsError where it cannot be read so."""
        return to_views(self.given, self.options())

    def changed(self, view: int, box: Box | None = None) -> dict[int, Any]:
        """Replacements, by id, in which a part of one view is inverted; all of it without a box."""
        rows, columns = box or (slice(None), slice(None))
        if isinstance(self.given, list):
            return self._changed_lists(view, rows, columns)
        leaves = self.given if isinstance(self.given, tuple) else (self.given,)
        places = to_views(tuple(map(_places, leaves)) if len(leaves) > 1 else _places(leaves[0]), self.options())
        leaf = leaves[view] if len(leaves) > 1 else leaves[0]
        flat = leaf.detach().clone().reshape(-1)
        where = places[:, view, :, rows, columns].reshape(-1).to(flat.device)
        flat[where] = flat.max() + flat.min() - flat[where]
        return {id(leaf): flat.reshape(leaf.shape)}

    def _changed_lists(self, view: int, rows: slice, columns: slice) -> dict[int, Any]:
        replaced = {}
        for row in self.given:
            image = row[view] if isinstance(row, list | tuple) else row
            array = np.array(image)
            array[rows, columns] = array.max() + array.min() - array[rows, columns]
            kept = type(image).__module__.startswith("PIL")
            replaced[id(image)] = _as_pil(array) if kept else _like(array, image)
        return replaced


def _places(leaf: Tensor) -> Tensor:
    return torch.arange(leaf.numel()).reshape(leaf.shape)


def _as_pil(array: Any) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def _like(array: Any, image: Any) -> Any:
    return torch.from_numpy(array) if isinstance(image, Tensor) else array


# ------------------------------------------------------------------------------------------------------- finding them


def chosen_images(
    arguments: Mapping[str, Any], model: nn.Module, paths: Sequence[str], samples: int
) -> list[ImageReading]:
    """Every way to read the images at the paths that the user has named.

    Raises:
        ViewsError: Nothing is there, or nothing that could be images.
    """
    given = tuple(find_value(arguments, path, "images") for path in paths)
    if len(given) > 1:
        found = [ImageReading(tuple(paths), given, len(given))]
    else:
        found = list(_readings(paths[0], given[0], arguments, model, samples))
    found = _readable(found)
    if not found:
        raise ViewsError(
            f"What is at {', '.join(map(repr, paths))} does not look like images: {', '.join(map(describe, given))}.",
            "Give the path of a tensor of images, or of one for each camera.",
        )
    return found


def find_images(arguments: Mapping[str, Any], model: nn.Module, samples: int) -> list[ImageReading]:
    """Everything in a batch that could be its images, likeliest first."""
    found: list[ImageReading] = []
    for path, leaf in sorted(leaves(arguments), key=lambda item: -_likeliness(item[0])):
        found += _readings(path, leaf, arguments, model, samples)
    return _readable([*_cameras(found), *found])


def _readable(found: Sequence[ImageReading]) -> list[ImageReading]:
    kept = []
    for each in found:
        try:
            each.raw()
        except ViewsError:
            continue
        kept.append(each)
    return kept


def leaves(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every tensor and list of images in a batch, by the path that the generic adapter knows it by."""
    found: list[tuple[str, Any]] = []
    for name, value in arguments.items():
        # The adapter looks into a mapping without being told its name.
        found += _leaves(value, "" if isinstance(value, Mapping) else name, _DEEPEST)
    return found


def _likeliness(path: str) -> int:
    return sum(name in path.lower() for name in _NAMES) - 2 * ("depth" in path.lower() or "mask" in path.lower())


def _leaves(value: Any, path: str, levels: int) -> Iterator[tuple[str, Any]]:
    """Paths and tensors, or lists of images, in anything that batches are made of."""
    if isinstance(value, Tensor) or _is_image_list(value):
        yield path, value
    elif levels:
        prefix = f"{path}." if path else ""
        for key, child in _children(value):
            yield from _leaves(child, f"{prefix}{key}", levels - 1)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for key in value[0]:
                rows = [row.get(key) for row in value]
                if _is_image_list(rows):
                    yield f"{prefix}*.{key}", rows


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(key, child) for key, child in value.items() if isinstance(key, str)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    own = getattr(value, "__dict__", None)
    return list(own.items()) if own and not isinstance(value, nn.Module | list | tuple) else []


def _is_image_list(value: Any) -> bool:
    if not (isinstance(value, list) and value):
        return False
    first = value[0][0] if isinstance(value[0], list | tuple) and value[0] else value[0]
    shape = getattr(first, "shape", None)
    if shape is not None:
        return len(shape) == 3 and shape[-1] == 3 and min(shape[:2]) >= _SMALLEST
    return type(first).__module__.startswith("PIL")


def _readings(
    path: str, given: Any, arguments: Mapping[str, Any], model: nn.Module, samples: int
) -> Iterator[ImageReading]:
    if isinstance(given, list):
        if _is_image_list(given):
            yield ImageReading(path, given, len(given[0]) if isinstance(given[0], list | tuple) else 1)
        return
    if not isinstance(given, Tensor) or not (given.is_floating_point() or given.dtype == torch.uint8):
        return
    shape = tuple(given.shape)
    if given.ndim == 2:
        yield from _patches(path, given, arguments, model, samples)
    elif given.ndim == 5 and (shape[2] == 3) != (shape[4] == 3) and min(shape[3], *shape[2:4]) >= 3:
        yield ImageReading(path, given, shape[1])
    elif given.ndim == 4 and shape[3] == 3 and min(shape[1:3]) >= _SMALLEST and shape[0] == samples:
        yield ImageReading(path, given, 1)
    elif given.ndim == 4 and min(shape[2:]) >= _SMALLEST and shape[1] % 3 == 0:
        yield from _planes(path, given, samples)


def _planes(path: str, given: Tensor, samples: int) -> Iterator[ImageReading]:
    """``(n, c, h, w)``: views beside each other among the samples, or among the channels."""
    count, channels = given.shape[:2]
    if channels == 3 and count == samples:
        yield ImageReading(path, given, 1)
    elif channels == 3 and count % samples == 0:
        yield ImageReading(path, given, count // samples, "(b v) c h w")
        yield ImageReading(path, given, count // samples, "(v b) c h w")
    elif count == samples:
        for each in (3, 6):
            if channels % each == 0:
                yield ImageReading(path, given, channels // each, "b (v c) h w")


def _patches(
    path: str, given: Tensor, arguments: Mapping[str, Any], model: nn.Module, samples: int
) -> Iterator[ImageReading]:
    """Flat patches of Qwen2-VL's kind, whose sizes stand beside them."""
    sizes = next((value for name, value in leaves(arguments) if name.endswith("image_grid_thw")), None)
    if sizes is None or len(sizes) % samples or not bool((sizes == sizes[0]).all()):
        return
    merge = _merge(model)
    _, rows, columns = sizes[0].tolist()
    cells = (rows // merge, columns // merge)
    yield ImageReading(path, given, len(sizes) // samples, "patches", merge, cells)


def _merge(model: nn.Module) -> int:
    found = (getattr(module, "spatial_merge_size", None) for module in model.modules())
    return next((merge for merge in found if isinstance(merge, int)), 2)


def _cameras(found: Sequence[ImageReading]) -> list[ImageReading]:
    """Tensors of one shape under one parent: a camera each."""
    groups: dict[tuple[str, tuple[int, ...]], list[ImageReading]] = {}
    for each in found:
        if isinstance(each.given, Tensor) and each.views == 1 and isinstance(each.paths, str):
            groups.setdefault((each.paths.rpartition(".")[0], tuple(each.given.shape)), []).append(each)
    return [
        ImageReading(tuple(str(each.paths) for each in group), tuple(each.given for each in group), len(group))
        for group in groups.values()
        if len(group) > 1
    ]
