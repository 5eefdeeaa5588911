"""Find candidates for the images in a batch, and change a part of one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfkit.errors import ViewsError
from sfkit.policies.generic.options import GenericOptions, ImageTokens
from sfkit.policies.generic.paths import describe, find_value
from sfkit.policies.generic.pixels import to_views
from sfkit_tools.report import AdapterArguments

#: A tensor, or a list of images (arrays, tensors, PIL) or of rows of images.
Leaf: TypeAlias = Tensor | list[Any]

_NAMES = ("image", "pixel", "rgb", "camera", "picture", "frame", "observation")
_DEEPEST = 5
_SMALLEST = 8

Box = tuple[slice, slice]


@dataclass(frozen=True)
class ImageReading:
    """One possible reading of a batch: where the images are, and in which layout.

    Attributes:
        paths: Path of the images, or one path for each view: the option ``images`` of the generic adapter.
        given: The value there: a tensor, one tensor for each view, or lists of images for each sample.
        views: Number of views.
        layout: The adapter's option ``layout``; None where the shape determines it.
        merge: The adapter's option ``merge`` for layout ``"patches"``.
        cells: Rows and columns of visual tokens, which the batch states for layout ``"patches"``; else None.
    """

    paths: str | tuple[str, ...]
    given: Tensor | tuple[Any, ...] | list[Any]
    views: int
    layout: str | None = None
    merge: int = 2
    cells: tuple[int, int] | None = None

    def options(self) -> GenericOptions:
        """Options of the adapter, with placeholders for those that this reading does not determine."""
        placeholders = {"blocks": "x", "tokens": ImageTokens(0), "grid": (self.views, *(self.cells or (1, 1)))}
        return GenericOptions(**{**placeholders, **self.layout_options()})

    def layout_options(self) -> AdapterArguments:
        """Options of the adapter that this reading determines."""
        found: AdapterArguments = {"images": self.paths}
        if self.layout is not None:
            found["layout"] = self.layout
        if self.layout == "patches" and self.merge != 2:
            found["merge"] = self.merge
        channels = 3
        if isinstance(self.given, Tensor) and self.layout == "b (v c) h w":
            channels = self.given.shape[1] // self.views
        if channels > 3:
            found["channels"] = (0, 1, 2)
        return found

    def reordered(self, order: Sequence[int]) -> ImageReading:
        """The same reading with separate camera tensors in another order."""
        if not isinstance(self.given, tuple):
            return self
        return replace(self, paths=tuple(self.paths[i] for i in order), given=tuple(self.given[i] for i in order))

    def raw(self) -> Tensor:
        """The images ``(b, v, 3, h, w)`` in the batch's own range.

        Raises:
            ViewsError: The value does not have this layout.
        """
        return to_views(self.given, self.options())

    def changed(self, view: int, box: Box | None = None) -> dict[int, object]:
        """Replacements by ``id`` in which a box of one view, or all of it, has inverted pixels."""
        rows, columns = box or (slice(None), slice(None))
        if isinstance(self.given, list):
            return self._changed_lists(self.given, view, rows, columns)
        leaves = self.given if isinstance(self.given, tuple) else (self.given,)
        places = to_views(tuple(map(_places, leaves)) if len(leaves) > 1 else _places(leaves[0]), self.options())
        leaf = leaves[view] if len(leaves) > 1 else leaves[0]
        flat = leaf.detach().clone().reshape(-1)
        where = places[:, view, :, rows, columns].reshape(-1).to(flat.device)
        flat[where] = flat.max() + flat.min() - flat[where]
        return {id(leaf): flat.reshape(leaf.shape)}

    def _changed_lists(self, given: list[Any], view: int, rows: slice, columns: slice) -> dict[int, object]:
        replaced: dict[int, object] = {}
        for row in given:
            image = row[view] if isinstance(row, list | tuple) else row
            array = np.array(image)
            array[rows, columns] = array.max() + array.min() - array[rows, columns]
            kept = type(image).__module__.startswith("PIL")
            replaced[id(image)] = _as_pil(array) if kept else _like(array, image)
        return replaced


def _places(leaf: Tensor) -> Tensor:
    """The flat index of each element of ``(...,)``, to see where a layout puts it."""
    return torch.arange(leaf.numel()).reshape(leaf.shape)


def _as_pil(array: NDArray[Any]) -> object:
    from PIL import Image

    return Image.fromarray(array)


def _like(array: NDArray[Any], image: object) -> object:
    return torch.from_numpy(array) if isinstance(image, Tensor) else array


# ------------------------------------------------------------------------------------------------------- finding them


def chosen_images(
    arguments: Mapping[str, object], model: nn.Module, paths: Sequence[str], samples: int
) -> list[ImageReading]:
    """Every reading of the images at paths that the user names.

    Raises:
        ViewsError: A path does not exist, or its value cannot be images.
    """
    given = tuple(find_value(arguments, path, "images") for path in paths)
    if len(given) > 1:
        tensors = tuple(value for value in given if isinstance(value, Tensor))
        found = [ImageReading(tuple(paths), tensors, len(tensors))] if len(tensors) == len(given) else []
    else:
        found = list(_readings(paths[0], given[0], arguments, model, samples))
    found = _readable(found)
    if not found:
        raise ViewsError(
            f"{', '.join(map(repr, paths))} does not look like images: {', '.join(map(describe, given))}.",
            "Give the path of a tensor of images, or of one for each camera.",
        )
    return found


def find_images(arguments: Mapping[str, object], model: nn.Module, samples: int) -> list[ImageReading]:
    """Every reading of a batch's images, the most likely first, by the names in the paths."""
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


def leaves(arguments: Mapping[str, object]) -> list[tuple[str, Leaf]]:
    """Every tensor and list of images in a batch, with its path in the syntax of the generic adapter."""
    found: list[tuple[str, Leaf]] = []
    for name, value in arguments.items():
        # Paths inside a mapping do not include the name of the argument.
        found += _leaves(value, "" if isinstance(value, Mapping) else name, _DEEPEST)
    return found


def _likeliness(path: str) -> int:
    return sum(name in path.lower() for name in _NAMES) - 2 * ("depth" in path.lower() or "mask" in path.lower())


def _leaves(value: object, path: str, levels: int) -> Iterator[tuple[str, Leaf]]:
    """Tensors and lists of images with their paths, in nested mappings, lists and objects."""
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


def _children(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(key, child) for key, child in value.items() if isinstance(key, str)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    own = getattr(value, "__dict__", None)
    return list(own.items()) if own and not isinstance(value, nn.Module | list | tuple) else []


def _is_image_list(value: object) -> TypeGuard[list[Any]]:
    if not (isinstance(value, list) and value):
        return False
    first = value[0][0] if isinstance(value[0], list | tuple) and value[0] else value[0]
    shape = getattr(first, "shape", None)
    if shape is not None:
        return len(shape) == 3 and shape[-1] == 3 and min(shape[:2]) >= _SMALLEST
    return type(first).__module__.startswith("PIL")


def _readings(
    path: str, given: object, arguments: Mapping[str, object], model: nn.Module, samples: int
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
    """Readings of ``(n, c, h, w)``: one view, or several views on the batch axis or on the channel axis."""
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
    path: str, given: Tensor, arguments: Mapping[str, object], model: nn.Module, samples: int
) -> Iterator[ImageReading]:
    """The reading of flat patches ``(n, d)`` as Qwen2-VL takes them, with their grids in ``image_grid_thw``."""
    sizes = next((value for name, value in leaves(arguments) if name.endswith("image_grid_thw")), None)
    if not isinstance(sizes, Tensor) or len(sizes) % samples or not bool((sizes == sizes[0]).all()):
        return
    merge = _merge(model)
    _, rows, columns = sizes[0].tolist()
    cells = (rows // merge, columns // merge)
    yield ImageReading(path, given, len(sizes) // samples, "patches", merge, cells)


def _merge(model: nn.Module) -> int:
    found = (getattr(module, "spatial_merge_size", None) for module in model.modules())
    return next((merge for merge in found if isinstance(merge, int)), 2)


def _cameras(found: Sequence[ImageReading]) -> list[ImageReading]:
    """Readings with one tensor per camera: tensors of one shape under one parent."""
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, Tensor]]] = {}
    for each in found:
        if isinstance(each.given, Tensor) and each.views == 1 and isinstance(each.paths, str):
            key = (each.paths.rpartition(".")[0], tuple(each.given.shape))
            groups.setdefault(key, []).append((each.paths, each.given))
    return [
        ImageReading(tuple(path for path, _ in group), tuple(given for _, given in group), len(group))
        for group in groups.values()
        if len(group) > 1
    ]
