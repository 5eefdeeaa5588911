"""What the geometry teacher computes: normals, offsets between patches, assumed intrinsics, and running statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.utils.runtime import is_distributed
from sfkit.views.types import Views

#: Of the product of both variances: below it the pixels of a cell lie on one line, and no plane is determined by them.
_THIN = 1e-3

#: Number of values, their sum, and the sum of their squares: ``(*positions, 1)``, then twice ``(*positions, d)``.
Sums: TypeAlias = tuple[Tensor, Tensor, Tensor]
_FIELDS = ("count", "total", "square")


def plane_normals(
    depth: Tensor, valid: Tensor, intrinsics: Tensor, cells: tuple[int, int], *, min_valid: float, flatness: float
) -> tuple[Tensor, Tensor]:
    """Unit normal of the plane through the pixels of each cell, toward the camera.

    A plane ``a X + b Y + c Z = 1`` has ``1 / Z = a x + b y + c`` at the normalized image coordinates
    ``x = X / Z, y = Y / Z``: inverse depth is affine in the pixel. So a least-squares fit in closed form gives
    ``(a, b, c)``, exactly for a plane however slanted, and the normal is ``-(a, b, c)`` over its length.

    Args:
        depth: ``(b, v, h, w)`` meters; anything where it is not valid.
        valid: ``(b, v, h, w)`` bool.
        intrinsics: ``(b, v, 3, 3)`` in pixels of the map.
        cells: Rows and columns of cells; they must divide the map.
        min_valid: Share of a cell's pixels that must be valid.
        flatness: Largest deviation of a cell from its plane (root mean square, relative to its depth). Above it, as
            across the border of an object, there is no one normal.

    Returns:
        ``(b, v, rows, columns, 3)`` in the camera's frame, 0 where undefined, and ``(b, v, rows, columns)`` bool.
    """
    rows, columns = cells
    tall, wide = depth.shape[2] // rows, depth.shape[3] // columns
    shape = (*depth.shape[:2], rows, tall, columns, wide)
    kept = valid.reshape(shape).float()
    inverse = torch.where(valid, 1 / torch.where(valid, depth.float(), 1.0), 0.0).reshape(shape)
    # Pixels from the middle of the cell: small numbers, so that float32 is enough.
    down = (torch.arange(tall, device=depth.device) - (tall - 1) / 2).view(tall, 1, 1)
    right = (torch.arange(wide, device=depth.device) - (wide - 1) / 2).view(1, 1, wide)
    valid_pixels = kept.sum((3, 5), keepdim=True)
    count = valid_pixels.clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        """Over the valid pixels of a cell, ``(b, v, rows, tall, columns, wide)`` to ``(b, v, rows, 1, columns, 1)``."""
        return (values * kept).sum((3, 5), keepdim=True) / count

    middle = mean(inverse), mean(down.expand(shape)), mean(right.expand(shape))
    q, y, x = inverse - middle[0], down - middle[1], right - middle[2]
    xx, yy, xy, xq, yq, qq = (mean(one) for one in (x * x, y * y, x * y, x * q, y * q, q * q))
    determinant = xx * yy - xy * xy
    solvable = determinant > _THIN * (xx * yy).clamp(min=_THIN)
    safe = torch.where(solvable, determinant, 1.0)
    along_x, along_y = (yy * xq - xy * yq) / safe, (xx * yq - xy * xq) / safe
    deviation = (qq - along_x * xq - along_y * yq).clamp(min=0).sqrt() / middle[0].clamp(min=1e-12)
    defined = solvable & (deviation <= flatness) & (valid_pixels >= min_valid * tall * wide)
    first = torch.arange(rows, device=depth.device).view(rows, 1, 1, 1) * tall + (tall - 1) / 2
    left = torch.arange(columns, device=depth.device).view(columns, 1) * wide + (wide - 1) / 2
    inverse_depth = [part[:, :, :, 0, :, 0] for part in (along_x, along_y, middle[0])]
    place = [part[:, :, :, 0, :, 0] for part in (left + middle[2], first + middle[1])]
    normal = _normal(inverse_depth, place, intrinsics.float())
    known = defined[:, :, :, 0, :, 0] & normal.isfinite().all(-1)
    return torch.where(known.unsqueeze(-1), normal, 0.0), known


def _normal(inverse_depth: Sequence[Tensor], place: Sequence[Tensor], k: Tensor) -> Tensor:
    """Normals ``(b, v, rows, columns, 3)`` of planes.

    Args:
        inverse_depth: Its slopes by column and by row, and its value at ``place``, each ``(b, v, rows, columns)``.
        place: Column and row of a pixel, each ``(b, v, rows, columns)``.
        k: ``(b, v, 3, 3)`` intrinsics.
    """
    along_x, along_y, value = inverse_depth
    column, row = place
    fx, skew, cx = (k[..., 0, i, None, None] for i in range(3))
    fy, cy = (k[..., 1, i, None, None] for i in (1, 2))
    y = (row - cy) / fy
    x = (column - cx - skew * y) / fx
    # A step of 1 in y moves the pixel by (skew, fy).
    a, b = along_x * fx, along_x * skew + along_y * fy
    plane = torch.stack([a, b, value - a * x - b * y], -1)
    return F.normalize(-plane, dim=-1)


def rotated(directions: Tensor, world_from_camera: Tensor) -> Tensor:
    """Directions ``(b, v, rows, columns, 3)`` of the camera's frame in that of the world, by ``(b, v, 4, 4)`` poses."""
    rotation = world_from_camera.to(directions.dtype)[..., None, :3, :3]
    return directions @ rotation.transpose(-1, -2)


def neighbor_offsets(points: Tensor, valid: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """From each patch's point to those ``reach`` columns to the right and ``reach`` rows below, in meters.

    Where there is none, at the border or beside a patch without depth, the offset from the patch on the other side to
    this one stands in, as in a finite difference.

    Args:
        points: ``(b, v, gh, gw, 3)``.
        valid: ``(b, v, gh, gw)`` bool.
        reach: In patches.

    Returns:
        ``(b, v, gh, gw, 6)``, 0 where undefined, and ``(b, v, gh, gw)`` bool: both offsets are defined.
    """
    right, right_known = _along(points, valid, 3, reach)
    down, down_known = _along(points, valid, 2, reach)
    known = right_known & down_known
    return torch.where(known.unsqueeze(-1), torch.cat([right, down], -1), 0.0), known


def _along(points: Tensor, valid: Tensor, axis: int, reach: int) -> tuple[Tensor, Tensor]:
    """Offsets ``(b, v, gh, gw, 3)`` along one axis, and ``(b, v, gh, gw)`` bool: where they are defined."""
    # Number of patches along the axis that have a neighbor.
    rest = points.shape[axis] - reach
    step = points.narrow(axis, reach, rest) - points.narrow(axis, 0, rest)
    both = valid.narrow(axis, reach, rest) & valid.narrow(axis, 0, rest)
    offset, known = torch.zeros_like(points), torch.zeros_like(valid)
    for start in (reach, 0):  # the offset that begins at the patch itself is written last, and so wins
        where = offset.narrow(axis, start, rest)
        where.copy_(torch.where(both.unsqueeze(-1), step, where))
        known.narrow(axis, start, rest).logical_or_(both)
    return offset, known


def assumed_intrinsics(views: Views, fov: float) -> Tensor:
    """Intrinsics ``(b, v, 3, 3)`` of a pinhole camera that looks straight ahead, with square pixels in its own image.

    The field of view is that of the image inside the view: letterbox padding does not count, and a resize that changes
    the aspect is undone where ``source_to_view`` records it.

    Args:
        views: For sizes, letterbox and resize.
        fov: Horizontal field of view in degrees.
    """
    left, right = _extent(views.valid.any(-2))
    top, bottom = _extent(views.valid.any(-1))
    fx = (right - left + 1) / (2 * math.tan(math.radians(fov) / 2))
    stretch = torch.ones_like(fx)
    if views.source_to_view is not None:
        stretch = views.source_to_view[..., 1, 1].float() / views.source_to_view[..., 0, 0].float()
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [fx, zero, (left + right) / 2, zero, fx * stretch, (top + bottom) / 2, zero, zero, one]
    return torch.stack(rows, -1).reshape(*fx.shape, 3, 3)


def _extent(inside: Tensor) -> tuple[Tensor, Tensor]:
    """``(b, v)`` float: first and last True of ``(b, v, n)``; the whole axis where there is none."""
    first = inside.int().argmax(-1).float()
    last = inside.shape[-1] - 1 - inside.flip(-1).int().argmax(-1).float()
    return first, last


class RunningMoments:
    """Means for each name and position, and one deviation about them for each channel, over all ranks.

    A name is a view (each patch position has a mean) or, without positions, anything. The sums are float64 where the
    device has it, so that batches and ranks add up.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}

    @property
    def empty(self) -> bool:
        """True before the first update."""
        return not self._sums

    def update(self, batch: Mapping[str, tuple[Tensor, Tensor]] | None) -> None:
        """Add one batch from every rank; all ranks must call this together, those without a batch with None.

        Args:
            batch: By name, ``(b, *positions, d)`` values and the ``(b, *positions)`` mask of those that count.

        Raises:
            ShapeError: The positions of a name differ from the earlier ones (another grid).
        """
        mine = {name: _sums(values, mask) for name, (values, mask) in (batch or {}).items()}
        for everything in _from_all_ranks(mine):
            for name, sums in everything.items():
                self._sums[name] = _added(name, self._sums.get(name), sums)

    def mean(self, name: str) -> Tensor:
        """``(*positions, d)`` float32 means of a name; positions never seen, and unknown names, get the overall one."""
        overall = self._overall()
        if name not in self._sums:
            return overall.float()
        count, total, _ = self._sums[name]
        return torch.where(count > 0, total / count.clamp(min=1), overall.to(total.device)).float()

    def std(self) -> Tensor:
        """``(d,)`` float32 deviation about the means of names and positions; 1 for channels that do not vary."""
        spread, seen = torch.zeros(()), torch.zeros(())
        for name, (count, total, square) in self._sums.items():
            mean = self.mean(name).to(total.dtype)
            # Sum over positions of E[(x - m)^2], from the sums alone.
            spread = spread.to(total) + _pooled(square - 2 * mean * total + count * mean.square())
            seen = seen.to(total) + _pooled(count)
        std = (spread / seen.clamp(min=1)).clamp(min=0).sqrt()
        # Below it a channel is constant up to rounding, and division would only amplify noise.
        floor = 1e-6 * self._overall().abs().clamp(min=1)
        return torch.where(std < floor, torch.ones_like(std), std).float()

    def state(self) -> dict[str, Tensor]:
        """Named tensors from which ``load_state`` restores."""
        return {
            f"{field}.{name}": part.cpu()
            for name, sums in self._sums.items()
            for field, part in zip(_FIELDS, sums, strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor], dim: int) -> None:
        """Restore what ``state`` returned for features of ``dim`` channels, as copies: a file's tensors may be mapped.

        Raises:
            ValueError: A sum is missing, unknown, negative, of no float type, or of another shape than the others.
        """
        names = [key.removeprefix("count.") for key in state if key.startswith("count.")]
        unknown = state.keys() - {f"{field}.{name}" for field in _FIELDS for name in names}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is unknown")
        self._sums = {name: _checked(name, [state.get(f"{field}.{name}") for field in _FIELDS], dim) for name in names}

    def _overall(self) -> Tensor:
        if not self._sums:
            raise RuntimeError("no statistics were gathered")
        seen = sum(_pooled(count) for count, _, _ in self._sums.values())
        total = sum(_pooled(total) for _, total, _ in self._sums.values())
        return torch.as_tensor(total) / torch.as_tensor(seen).clamp(min=1)


def _checked(name: str, saved: Sequence[Tensor | None], dim: int) -> Sums:
    """Copies of saved sums, ``(*positions, 1)``, ``(*positions, d)`` and ``(*positions, d)``."""
    count, total, square = saved
    if count is None or total is None or square is None:
        raise ValueError(f"{name} lacks one of {', '.join(_FIELDS)}")
    if not (count.shape[-1:] == (1,) and total.shape == square.shape == (*count.shape[:-1], dim)):
        shapes = ", ".join(str(tuple(part.shape)) for part in (count, total, square))
        raise ValueError(f"{', '.join(f'{field}.{name}' for field in _FIELDS)} have the shapes {shapes}")
    for field, part in zip(_FIELDS, (count, total, square), strict=True):
        if part.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{field}.{name} is {part.dtype}, expected torch.float64")
    if bool((count < 0).any() | (square < 0).any()):
        raise ValueError(f"count.{name} or square.{name} is negative")
    return count.clone(), total.clone(), square.clone()


def _pooled(values: Tensor) -> Tensor:
    """``(*positions, d)`` to its sum ``(d,)`` over positions."""
    return values.flatten(0, -2).sum(0) if values.ndim > 1 else values


def _added(name: str, old: Sums | None, new: Sums) -> Sums:
    if old is None:
        return new
    if old[1].shape != new[1].shape:
        raise ShapeError(f"Target statistics of {name} have shape {tuple(old[1].shape)}, not {tuple(new[1].shape)}.")
    count, total, square = (a.to(b.device) + b for a, b in zip(old, new, strict=True))
    return count, total, square


def _sums(values: Tensor, mask: Tensor) -> Sums:
    """Over the batch of ``(b, *positions, d)`` values where the ``(b, *positions)`` mask is True."""
    # Sums of squares over many steps need float64, which MPS does not have.
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where(mask.unsqueeze(-1), values, 0.0).to(dtype)
    return mask.unsqueeze(-1).to(dtype).sum(0), kept.sum(0), kept.square().sum(0)


def _from_all_ranks(mine: dict[str, Sums]) -> Iterable[dict[str, Sums]]:
    """Every rank's sums in the order of ranks, so that all ranks add up the same numbers in the same order.

    It gathers objects rather than tensors, because a rank without a batch knows neither names nor shapes. It runs in
    the first few steps only.
    """
    if not is_distributed():
        return [mine]
    everybody = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, mine)
    return everybody
