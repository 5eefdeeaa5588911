"""The teacher ``store:<folder>``: reads what another teacher computed before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import ComponentSpec, Options
from sfkit.errors import ConfigError, ViewsError
from sfkit.registry.component import AnyOptions, Reaching
from sfkit.teachers.base import Teacher
from sfkit.views.types import FeatureMap, Views
from sfkit_store.encoding import PARTS, decoded, small_pictures
from sfkit_store.manifest import StoreError
from sfkit_store.shards import PICTURES, Key, describe
from sfkit_store.store import Store

_NAME = "store"
#: Pixels are compared in so many batches at the start, and then in one of so many: it waits for the device.
_FIRST, _EVERY = 2, 50
#: Largest difference of a cell's mean, in [0, 255]. Decoders of one video differ by less, a crop by more.
_SAME = 5


class StoreOptions(Options):
    """Options of :class:`StoreTeacher`."""

    path: Reaching[str] = Field(description="Folder of the store; also written store:<path>.")
    missing: Literal["error", "mask"] = Field(
        default="error", description="A frame that the store lacks: an error, or not aligned."
    )
    pixels: Literal["same", "any"] = Field(
        default="same",
        description="same: an error where the student sees other pixels than the teacher saw; any: not compared.",
    )


class StoreTeacher(Teacher):
    """The features of a store, by the frames that ``Views.keys`` name. There is no network.

    Identity and license are those of the teacher that computed them. Views, grid and layers must be those of the store,
    and the pixels are compared with those that the teacher saw: in the first two batches, then in one of 50.
    """

    name = _NAME
    license = "that of the teacher in the store"
    # A view that is absent has its own mask, and views are stored as they were encoded, together.
    drops_absent: ClassVar[bool] = False
    Options: ClassVar[type[Options]] = StoreOptions
    options: StoreOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        self.name = f"{_NAME}:{self.options.path}"
        self.store = Store(self.options.path)
        self.license = self.store.manifest.teacher.identity["license"]
        self._batches = 0

    @property
    def num_layers(self) -> int:
        return self.store.manifest.teacher.num_layers

    @property
    def default_layer(self) -> int:
        stored, default = self.store.manifest.layers, self.store.manifest.teacher.default_layer
        return default if default in stored else stored[-1]

    def dim(self, layer: int) -> int:
        widths = self.store.manifest.widths
        if layer not in widths:
            raise ConfigError(
                f"The store {self.options.path} holds teacher layers {self._stored}, not {layer}.",
                f"Choose one of these, or build a store with --teacher-layers {layer}.",
            )
        return widths[layer]

    @property
    def _stored(self) -> str:
        return ", ".join(map(str, self.store.manifest.layers))

    @property
    def spec(self) -> ComponentSpec:
        options = {key: value for key, value in super().spec.options.items() if key != "path"}
        return ComponentSpec(name=self.name, options=options)

    @property
    def identity(self) -> dict[str, str]:
        return dict(self.store.manifest.teacher.identity)

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        self._require_same_recipe(views, layers, grid)
        keys = views.keys
        if keys is None:
            raise ViewsError(
                f"Teacher {self.name!r} finds features by frame, and this batch does not say which frames it holds.",
                "For LeRobot, train on sfkit_lerobot.FrameKeys(dataset); for a policy of your own, let its adapter "
                "fill Views.keys.",
            )
        there = [self.options.missing == "error" or key in self.store for key in keys]
        self._compare_pixels(views, keys, there)
        return [self._features(layer, keys, there, views) for layer in layers]

    def _features(self, layer: int, keys: Sequence[Key], there: Sequence[bool], views: Views) -> FeatureMap:
        """``(b, v, gh, gw, d)`` float32 on the device of the views; masked where a frame is missing."""
        manifest, device = self.store.manifest, views.images.device
        names = list(PARTS[manifest.dtype])
        rows = [
            self.store.read(key, [f"{layer}.{name}" for name in names])
            for key, is_there in zip(keys, there, strict=True)
            if is_there
        ]
        cells = (len(manifest.cameras), *manifest.grid)
        if not rows:
            shape = (len(keys), *cells, self.dim(layer))
            return FeatureMap(
                torch.zeros(shape, device=device), torch.zeros(shape[:-1], dtype=torch.bool, device=device)
            )
        parts = dict(zip(names, (torch.stack(column).to(device) for column in zip(*rows, strict=True)), strict=True))
        found = decoded(parts)
        if all(there):
            return found
        values = found.values.new_zeros(len(keys), *found.values.shape[1:])
        mask = found.mask.new_zeros(len(keys), *cells)
        places = torch.tensor(there, device=device)
        values[places], mask[places] = found.values, found.mask
        return FeatureMap(values, mask)

    def _require_same_recipe(self, views: Views, layers: Sequence[int], grid: tuple[int, int]) -> None:
        """Refuse a run that the store was not built for.

        Raises:
            StoreError: Cameras, their order, the size of the views or the grid differ.
            ConfigError: A layer is not stored.
        """
        manifest = self.store.manifest
        for layer in layers:
            self.dim(layer)
        pairs = {
            "cameras": (manifest.cameras, tuple(views.names)),
            "views of (height, width)": (manifest.view, tuple(views.size)),
            "a grid of": (manifest.grid, tuple(grid)),
        }
        different = [
            f"{what} {stored}, and the student has {mine}" for what, (stored, mine) in pairs.items() if stored != mine
        ]
        if different:
            raise StoreError(
                f"The store {self.options.path} was built for another student: it has {'; '.join(different)}.",
                "Build a store with the policy that you train (--policy) and its grid (--grid).",
            )

    def _compare_pixels(self, views: Views, keys: Sequence[Key], there: Sequence[bool]) -> None:
        """Compare small pictures of what the student sees with those of what the teacher saw.

        Raises:
            StoreError: They differ.
        """
        self._batches += 1
        if self.options.pixels == "any" or (self._batches > _FIRST and self._batches % _EVERY):
            return
        seen, present = small_pictures(views.images).cpu().int(), views.present.cpu()
        for sample, key in enumerate(keys):
            if not there[sample]:
                continue
            (stored,) = self.store.read(key, [PICTURES])
            self._expect_same(key, seen[sample], stored.int(), present[sample])

    def _expect_same(self, key: Key, seen: Tensor, stored: Tensor, present: Tensor) -> None:
        """Two small pictures of each view, ``(v, 3, SIDE, SIDE)``, compared where ``(v,)`` is True."""
        most = (seen - stored).abs().flatten(1).amax(1)
        wrong = [
            name
            for name, difference, is_seen in zip(
                self.store.manifest.cameras, most.tolist(), present.tolist(), strict=True
            )
            if is_seen and difference > _SAME
        ]
        if wrong:
            raise StoreError(
                f"The student sees other pixels than the teacher saw when the store was built: {', '.join(wrong)} of "
                f"{describe(key)} differs by {int(most.max())} of 255.",
                "Turn off image transforms that crop, turn or recolor; if the pictures were edited, build the store "
                "anew. If stored features are to stand for changed colors, give the option pixels=any: nothing is then "
                "compared.",
            )
