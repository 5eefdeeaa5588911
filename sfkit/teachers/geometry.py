"""Ground-truth geometry as a teacher: the 3D points that each patch shows, from depth and calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.component import AnyOptions
from sfkit.config import Options
from sfkit.errors import ConfigError, ViewsError
from sfkit.geometry import to_world, unproject
from sfkit.teachers.base import Teacher
from sfkit.teachers.moments import RunningMoments
from sfkit.types import FeatureMap, Views


class GeometryOptions(Options):
    """Options of :class:`GeometryTeacher`."""

    frame: Literal["camera", "world"] = Field(default="camera", description="Frame of the points; world needs poses.")
    cells: int = Field(default=2, ge=1, description="Points along each side of a patch (2: four points).")
    bands: int = Field(default=4, ge=0, description="Fourier bands, each halving the wavelength.")
    wavelength: float = Field(default=2.0, gt=0, description="Longest wavelength of the Fourier features, in metres.")
    depth_min: float = Field(default=0.05, gt=0, description="Depth below this many metres is invalid.")
    depth_max: float = Field(default=10.0, gt=0, description="Depth beyond this many metres is invalid.")
    min_valid: float = Field(default=0.5, gt=0, le=1, description="Share of a sub-cell's pixels that must be valid.")
    position_mean: bool = Field(
        default=False, description="Remove the mean of each patch position, so that a constant map earns nothing."
    )
    calibration_steps: int = Field(
        default=32, ge=0, description="Training steps over which statistics are gathered, unless `fit` was called."
    )


class GeometryTeacher(Teacher):
    """Each patch's 3D points and their Fourier features, standardised for each channel.

    A patch is divided into ``cells x cells`` sub-cells. Each gives the mean point of its valid pixels, and sines and
    cosines of that point at wavelengths ``wavelength / 2**k``: ``cells**2 * 3 * (1 + 2 * bands)`` channels. Statistics
    come from :meth:`fit`, or else from the first ``calibration_steps`` training steps (summed over ranks), then freeze.
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
        if self.options.frame == "world":
            self.requires = self.requires | {"world_from_camera"}
        self._moments = RunningMoments()
        self._steps_left = self.options.calibration_steps
        self._standard: tuple[tuple[str, ...], Tensor, Tensor] | None = None

    @property
    def num_layers(self) -> int:
        return 1

    def dim(self, layer: int) -> int:
        return self.options.cells**2 * 3 * (1 + 2 * self.options.bands)

    def fit(self, batches: Iterable[tuple[Views, tuple[int, int]]]) -> None:
        """Take the statistics from these ``(views, grid)`` and freeze them.

        With several ranks, all must call this, with the same number of batches.
        """
        self._moments, self._standard = RunningMoments(), None
        for views, grid in batches:
            self._moments.update(self._for_statistics(views, grid))
        if self._moments.empty:
            raise ViewsError("GeometryTeacher.fit was given no batch.")
        self._steps_left = 0

    def observe(self, batch: tuple[Views, tuple[int, int]] | None) -> None:
        if self._steps_left > 0 or self._moments.empty:
            self._moments.update(None if batch is None else self._for_statistics(*batch))
            self._steps_left -= 1
            self._standard = None

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        values, mask = self._features(views, grid)
        mean, std = self._statistics(views.names, values.device)
        standard = torch.where(mask.unsqueeze(-1), (values - mean) / std, 0.0)
        return [FeatureMap(standard, mask) for _ in layers]

    def state(self) -> dict[str, Tensor]:
        return {**self._moments.state(), "steps_left": torch.tensor(self._steps_left)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._steps_left = int(state["steps_left"])
        self._moments.load_state({key: value for key, value in state.items() if key != "steps_left"})
        self._standard = None

    def _for_statistics(self, views: Views, grid: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """Values and mask by view, or all together when positions are of no interest.

        By name and not by index: a policy may list present cameras first, and so in another order in each batch.
        """
        values, mask = self._features(views, grid)
        if not self.options.position_mean:
            return {"all": (values.flatten(0, 3), mask.flatten())}
        return {name: (values[:, i], mask[:, i]) for i, name in enumerate(views.names)}

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
        points, valid = self._points(views)
        points, valid = _pool(points, valid, self._fine_grid(views.size, grid), self.options.min_valid)
        features = torch.cat([points, *self._fourier(points)], dim=-1)
        return _gather_cells(features, self.options.cells), _all_cells(valid, self.options.cells)

    def _points(self, views: Views) -> tuple[Tensor, Tensor]:
        if views.depth is None or views.intrinsics is None:
            raise ViewsError("The geometry teacher needs depth and intrinsics.")
        depth = views.depth.float()
        points = unproject(depth, views.intrinsics.float())
        if self.options.frame == "world":
            if views.world_from_camera is None:
                raise ViewsError("The geometry teacher needs camera poses for frame='world'.")
            points = to_world(points, views.world_from_camera.float())
        # NaN depth fails both comparisons, so it is invalid without a test of its own.
        valid = views.valid & (depth >= self.options.depth_min) & (depth <= self.options.depth_max)
        return points, valid & points.isfinite().all(-1)

    def _fine_grid(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (side * self.options.cells for side in grid)
        if size[0] % rows or size[1] % columns:
            raise ConfigError(
                f"geometry: a view of {size[0]}x{size[1]} pixels does not divide into {grid[0]}x{grid[1]} tokens "
                f"of {self.options.cells}x{self.options.cells} sub-cells.",
                "Choose `cells` so that each sub-cell is a whole number of pixels.",
            )
        return rows, columns

    def _fourier(self, points: Tensor) -> list[Tensor]:
        waves = []
        for band in range(self.options.bands):
            phase = points * (2 * torch.pi * 2**band / self.options.wavelength)
            waves += [phase.sin(), phase.cos()]
        return waves


def _pool(points: Tensor, valid: Tensor, fine: tuple[int, int], min_valid: float) -> tuple[Tensor, Tensor]:
    """Mean of the valid points in each sub-cell, and which sub-cells have enough of them."""
    b, v, h, w, _ = points.shape
    rows, columns = fine
    blocks = (b, v, rows, h // rows, columns, w // columns)
    kept = torch.where(valid.unsqueeze(-1), points, 0.0).reshape(*blocks, 3).sum((3, 5))
    count = valid.reshape(blocks).sum((3, 5))
    share = count / ((h // rows) * (w // columns))
    return kept / count.clamp(min=1).unsqueeze(-1), share >= min_valid


def _gather_cells(features: Tensor, cells: int) -> Tensor:
    b, v, rows, columns, d = features.shape
    split = features.reshape(b, v, rows // cells, cells, columns // cells, cells, d)
    return split.permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


def _all_cells(valid: Tensor, cells: int) -> Tensor:
    b, v, rows, columns = valid.shape
    return valid.reshape(b, v, rows // cells, cells, columns // cells, cells).all(5).all(3)
