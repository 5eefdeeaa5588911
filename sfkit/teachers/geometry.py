"""Ground-truth geometry as a teacher: points, normals and offsets of what each patch shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import ConfigError, SfkitWarning, ViewsError
from sfkit.registry.component import AnyOptions, Harmless
from sfkit.teachers.base import Teacher
from sfkit.teachers.surfaces import RunningMoments, assumed_intrinsics, neighbor_offsets, plane_normals, rotated
from sfkit.utils.runtime import float32_by_default
from sfkit.views.geometry import to_world, unproject
from sfkit.views.types import FeatureMap, Views


class GeometryOptions(Options):
    """Options of :class:`GeometryTeacher`."""

    features: tuple[Literal["points", "normals", "offsets"], ...] = Field(
        default=("points",), min_length=1, description="3D points, surface normals, offsets to other patches."
    )
    frame: Literal["camera", "world"] = Field(default="camera", description="Frame of all features; world needs poses.")
    fov: float | None = Field(
        default=60.0, gt=0, lt=180, description="Horizontal field of view, assumed without intrinsics; null: an error."
    )
    cells: int = Field(default=2, ge=1, le=8, description="Points along each side of a patch (2: four points).")
    bands: int = Field(default=4, ge=0, le=16, description="Fourier bands, each halving the wavelength.")
    wavelength: float = Field(default=2.0, gt=0, description="Longest wavelength of the Fourier features, in meters.")
    depth_min: float = Field(default=0.05, gt=0, description="Depth below this many meters is invalid.")
    depth_max: float = Field(default=10.0, gt=0, description="Depth of this many meters or more is invalid.")
    min_valid: float = Field(default=0.5, gt=0, le=1, description="Share of a sub-cell's pixels that must be valid.")
    flatness: float = Field(default=0.01, gt=0, description="Largest distance to a normal's plane, relative to depth.")
    reach: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1,),
        min_length=1,
        max_length=64,
        description="Offsets go to the patches so many columns right, and rows below.",
    )
    position_mean: Harmless[bool] = Field(default=False, description="Subtract the mean of each patch position.")
    calibration_steps: int = Field(default=32, ge=0, description="Training steps that gather statistics without fit.")

    @field_validator("features", "reach", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, (str, int)) else value

    @field_validator("features", "reach")
    @classmethod
    def _each_once(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each may be listed once")
        return value


class GeometryTeacher(Teacher):
    """What each patch shows in 3D, standardized for each channel. The option ``features`` lists its parts, in order.

    - ``points``: a patch is divided into ``cells x cells`` sub-cells. Each gives the mean point of its valid pixels,
      and sines and cosines of that point at wavelengths ``wavelength / 2**k``: ``cells**2 * 3 * (1 + 2 * bands)``
      channels.
    - ``normals``: the unit normal of the plane through each sub-cell, toward the camera: ``cells**2 * 3`` channels.
    - ``offsets``: from the patch's mean point to those ``reach`` patches to the right and below: 6 channels for each.

    A patch is masked where any of them is undefined: depth is missing or out of range, a sub-cell is no plane, or no
    neighbor has depth. Statistics come from :meth:`fit`, or else from the first ``calibration_steps`` training steps
    (summed over ranks), and then stay fixed. With ``position_mean`` each patch position has its own mean, so that a map
    that is the same for all images earns nothing.
    """

    name = "geometry"
    license = "Apache-2.0"
    requires = frozenset({"depth", "intrinsics"})
    # Views are independent here, and an absent one is masked and nearly free.
    drops_absent = False
    Options: ClassVar[type[Options]] = GeometryOptions
    options: GeometryOptions

    def __init__(self, options: AnyOptions = None) -> None:
        super().__init__(options)
        if self.options.depth_min >= self.options.depth_max:
            raise ConfigError("geometry: depth_min must be below depth_max.")
        if self.options.fov is not None:
            self.requires = self.requires - {"intrinsics"}
        if self.options.frame == "world":
            self.requires = self.requires | {"world_from_camera"}
        self._moments = RunningMoments()
        self._steps_left = self.options.calibration_steps
        #: Views, grid, features and mask of the batch that ``observe`` has seen.
        self._computed: tuple[Views, tuple[int, int], tuple[Tensor, Tensor]] | None = None
        #: Names of views, and their mean and deviation; computed again after each change of the moments.
        self._standard: tuple[tuple[str, ...], Tensor, Tensor] | None = None
        #: Cameras whose intrinsics were seen, or of which a warning was given.
        self._checked: set[str] = set()

    @property
    def num_layers(self) -> int:
        return 1

    def dim(self, layer: int) -> int:
        options, vectors = self.options, 3 * self.options.cells**2
        widths = {"points": vectors * (1 + 2 * options.bands), "normals": vectors, "offsets": 6 * len(options.reach)}
        return sum(widths[name] for name in options.features)

    @float32_by_default()
    def fit(self, batches: Iterable[tuple[Views, tuple[int, int]]]) -> None:
        """Take the statistics from these ``(views, grid)`` and keep them fixed.

        With several ranks, all must call this, with the same number of batches.
        """
        self._moments, self._standard = RunningMoments(), None
        for views, grid in batches:
            self._moments.update(self._for_statistics(views.names, *self._features(views, grid)))
        if self._moments.empty:
            raise ViewsError("GeometryTeacher.fit was given no batch.")
        self._steps_left = 0

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        # At least one batch counts, also with calibration_steps=0: without statistics nothing can be standardized.
        if self._steps_left > 0 or self._moments.empty:
            if batch is None:
                self._moments.update(None)
            else:
                features = self._features(*batch)
                self._computed = (*batch, features)  # ``encode`` follows with the same batch
                self._moments.update(self._for_statistics(batch[0].names, *features))
            self._steps_left -= 1
            self._standard = None

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        (seen, its_grid, features), self._computed = self._computed or (None, None, None), None
        if features is None or seen is not views or its_grid != grid:
            features = self._features(views, grid)
        values, mask = features
        mean, std = self._statistics(views.names, values.device)
        standard = torch.where(mask.unsqueeze(-1), (values - mean) / std, 0.0)
        return [FeatureMap(standard, mask) for _ in layers]

    def state(self) -> dict[str, Tensor]:
        return {**self._moments.state(), "steps_left": torch.tensor(self._steps_left)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        left = state["steps_left"]
        if left.shape or left.dtype != torch.int64:
            raise ValueError(f"steps_left is {left.dtype} of shape {tuple(left.shape)}, expected a whole number")
        self._moments.load_state({key: value for key, value in state.items() if key != "steps_left"}, self.dim(1))
        self._steps_left = int(left)
        self._standard = None

    def _for_statistics(self, names: Sequence[str], values: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Values ``(b, v, gh, gw, d)`` and mask by view with ``position_mean``, otherwise of all views together.

        By name and not by index: a policy may list present cameras first, and so in another order in each batch.
        """
        if not self.options.position_mean:
            return {"all": (values.flatten(0, 3), mask.flatten())}
        return {name: (values[:, i], mask[:, i]) for i, name in enumerate(names)}

    def _statistics(self, names: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """``(d,)`` or ``(v, gh, gw, d)`` mean, and ``(d,)`` deviation."""
        if self._standard is None or self._standard[0] != names or self._standard[1].device != device:
            mean = self._moments.mean("all")
            if self.options.position_mean:
                means = [self._moments.mean(name) for name in names]
                shape = max((item.shape for item in means), key=len)  # (d,) for a camera never seen
                mean = torch.stack([item.expand(shape) for item in means])
            # Statistics of an earlier run are on the host: they are sent once.
            self._standard = (names, mean.to(device), self._moments.std().to(device))
        return self._standard[1:]

    def _features(self, views: Views, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Raw features ``(b, v, gh, gw, d)`` and mask ``(b, v, gh, gw)``."""
        options, intrinsics = self.options, self._intrinsics(views)
        (h, w), (rows, columns) = views.images.shape[-2:], (grid[0] * options.cells, grid[1] * options.cells)
        if h % rows or w % columns:
            raise ConfigError(
                f"geometry: a view of {h} x {w} pixels does not divide into {rows} x {columns} sub-cells.",
                "Choose `cells` so that each sub-cell is a whole number of pixels.",
            )
        points, valid = self._points(views, intrinsics)
        fine, fine_valid = _pool(points, valid, (rows, columns), options.min_valid)
        parts, mask = [], _all_cells(fine_valid, options.cells)
        for name in options.features:
            if name == "points":
                parts.append(_gather_cells(torch.cat([fine, *self._fourier(fine)], dim=-1), options.cells))
            elif name == "normals":
                values, known = self._normals(views, valid, intrinsics, (rows, columns))
                parts.append(_gather_cells(values, options.cells))
                mask = mask & _all_cells(known, options.cells)
            else:
                if max(options.reach) >= min(grid):
                    raise ConfigError(
                        f"geometry: a grid of {grid} has no patches {max(options.reach)} away.", "Lower `reach`."
                    )
                # Offsets are between patches, whatever the number of sub-cells.
                middle = _gather_cells(fine, options.cells).reshape(*mask.shape, -1, 3).mean(-2)
                offsets = [neighbor_offsets(middle, mask, reach) for reach in options.reach]
                parts += [values for values, _ in offsets]
                mask = mask & torch.stack([known for _, known in offsets]).all(0)
        return torch.cat(parts, -1), mask

    def _intrinsics(self, views: Views) -> Tensor:
        """``(b, v, 3, 3)``: those of the views, and assumed ones, with a warning, where they are unknown."""
        if self.options.fov is None:
            return _require(views.intrinsics, "depth and intrinsics")
        assumed = assumed_intrinsics(views, self.options.fov)
        if views.intrinsics is None:
            self._warn_of_assumed(views.names)
            return assumed
        # Cameras of unknown calibration have NaN.
        unknown = ~views.intrinsics.isfinite().flatten(2).all(-1)
        if not self._checked.issuperset(views.names):
            # Waits for the device, until each camera has been present once.
            there, without = torch.stack([views.present.any(0), (unknown & views.present).any(0)]).tolist()
            self._warn_of_assumed([name for name, lacks in zip(views.names, without, strict=True) if lacks])
            self._checked.update(name for name, seen in zip(views.names, there, strict=True) if seen)
        return torch.where(unknown[..., None, None], assumed, views.intrinsics.float())

    def _warn_of_assumed(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self._checked]
        self._checked.update(new)
        if new:
            warnings.warn(
                f"sfkit: the intrinsics of {', '.join(new)} are unknown, so the geometry teacher assumes a horizontal "
                f"field of view of {self.options.fov:g} degrees and square pixels. Give the camera's calibration, or "
                "its field of view as the option fov; fov=None makes this an error.",
                SfkitWarning,
                stacklevel=2,
            )

    def _points(self, views: Views, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, v, h, w, 3)`` points in meters, and ``(b, v, h, w)`` bool: which are valid."""
        depth = _require(views.depth, "depth")
        points = unproject(depth, intrinsics)
        if self.options.frame == "world":
            points = to_world(points, _require(views.world_from_camera, "camera poses for frame='world'"))
        # NaN depth fails both comparisons, so it is invalid without a test of its own. Depth at the far end was often
        # clipped to it, by a sensor or a recorder.
        valid = views.valid & (depth >= self.options.depth_min) & (depth < self.options.depth_max)
        return points, valid & points.isfinite().all(-1)

    def _normals(
        self, views: Views, valid: Tensor, intrinsics: Tensor, cells: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """``(b, v, rows, columns, 3)`` normals of the sub-cells, and ``(b, v, rows, columns)`` bool: where defined."""
        tall, wide = views.size[0] // cells[0], views.size[1] // cells[1]
        if min(tall, wide) < 2:
            raise ConfigError(f"geometry: sub-cells of {tall}x{wide} pixels are too small for normals.", "Lower cells.")
        depth, limits = _require(views.depth, "depth"), (self.options.min_valid, self.options.flatness)
        normals, known = plane_normals(depth, valid, intrinsics, cells, min_valid=limits[0], flatness=limits[1])
        if self.options.frame == "world":
            pose = _require(views.world_from_camera, "camera poses for frame='world'")
            normals = torch.where(known.unsqueeze(-1), rotated(normals, pose), 0.0)
        return normals, known

    def _fourier(self, points: Tensor) -> list[Tensor]:
        """Sine and cosine of ``(..., 3)`` points in each band, each ``(..., 3)``."""
        bands = range(self.options.bands)
        phases = (points * (2 * torch.pi * 2**band / self.options.wavelength) for band in bands)
        return [wave(phase) for phase in phases for wave in (torch.sin, torch.cos)]


def _require(value: Tensor | None, what: str) -> Tensor:
    """An optional field of the views, such as ``(b, v, h, w)`` depth, in float32."""
    if value is None:
        raise ViewsError(f"The geometry teacher needs {what}.")
    return value.float()


def _blocks(x: Tensor, tall: int, wide: int) -> Tensor:
    """``(b, v, rows * tall, columns * wide, ...)`` to ``(b, v, rows, tall, columns, wide, ...)``."""
    return x.reshape(*x.shape[:2], x.shape[2] // tall, tall, x.shape[3] // wide, wide, *x.shape[4:])


def _pool(points: Tensor, valid: Tensor, cells: tuple[int, int], min_valid: float) -> tuple[Tensor, Tensor]:
    """Mean of the valid points ``(b, v, h, w, 3)`` of each sub-cell, and which sub-cells have enough of them."""
    tall, wide = points.shape[2] // cells[0], points.shape[3] // cells[1]
    kept = _blocks(torch.where(valid.unsqueeze(-1), points, 0.0), tall, wide).sum((3, 5))
    count = _blocks(valid, tall, wide).sum((3, 5))
    return kept / count.clamp(min=1).unsqueeze(-1), count / (tall * wide) >= min_valid


def _gather_cells(features: Tensor, cells: int) -> Tensor:
    """``(b, v, rows * cells, columns * cells, d)`` to ``(b, v, rows, columns, cells * cells * d)``."""
    return _blocks(features, cells, cells).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


def _all_cells(valid: Tensor, cells: int) -> Tensor:
    """``(b, v, rows * cells, columns * cells)`` bool to ``(b, v, rows, columns)``: all sub-cells are valid."""
    return _blocks(valid, cells, cells).all(5).all(3)
