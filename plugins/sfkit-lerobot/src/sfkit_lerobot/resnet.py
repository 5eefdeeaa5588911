"""ACT and Diffusion: policies without a language model, whose visual tokens are the cells of a ResNet's feature map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.errors import AdapterError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.views.types import Views
from sfkit_lerobot.base import LeRobotAdapter
from sfkit_lerobot.letterbox import Letterbox, Size
from sfkit_lerobot.normalization import Batch


@dataclass(frozen=True)
class Crop(Letterbox):
    """How an image became what a ResNet saw: resized, cropped, and shifted so that its cells lie on a patch grid.

    The cell ``i`` of a ResNet of stride ``s`` looks around pixel ``s * i``: all its convolutions are padded by half of
    their kernel. A patch grid has the center of that cell half a stride further, at ``s * i + (s - 1) / 2``. The view
    is therefore the image moved by half a stride to the lower right. What is before it is padding, so the first row
    and column, which the network itself computes half from padding, are not aligned; nor are the last pixels, which
    belong to no cell.

    Attributes:
        origin: Row and column of the crop in the resized image.
        size: Height and width of the crop.
    """

    origin: Size = (0, 0)
    size: Size = (0, 0)

    @classmethod
    def make(cls, source: Size, resized: Size, origin: Size, size: Size, stride: int) -> Crop:
        """A crop of ``size`` at ``origin`` of the image once it is ``resized``, for cells of ``stride`` pixels."""
        view = (-(-size[0] // stride) * stride, -(-size[1] // stride) * stride)
        shift = stride // 2
        return cls(source, resized, view, (shift - origin[0], shift - origin[1]), origin, size)

    @property
    def shift(self) -> Size:
        """Rows above the crop in the view, and columns to its left."""
        return self.offset[0] + self.origin[0], self.offset[1] + self.origin[1]

    @property
    def valid(self) -> Tensor:
        inside = torch.zeros(self.view, dtype=torch.bool)
        (top, left), (h, w) = self.shift, self.size
        inside[top : top + h, left : left + w] = True
        return inside

    def cut(self, picture: Tensor) -> Tensor:
        """The view ``(b, 3, *view)`` of an image ``(b, 3, *resized)``; what is not valid repeats the border."""
        (row, column), (h, w), (top, left) = self.origin, self.size, self.shift
        seen = picture[..., row : row + h, column : column + w]
        below, right = max(0, self.view[0] - top - h), max(0, self.view[1] - left - w)
        return F.pad(seen, (left, right, top, below), mode="replicate")[..., : self.view[0], : self.view[1]]


class ResNetAdapter(LeRobotAdapter):
    """Base of the adapters: every camera must be in the batch, as these policies demand themselves."""

    @abstractmethod
    def stride(self, layer: int) -> int:
        """Pixels from one cell to the next at a layer."""

    @abstractmethod
    def crops(self, pictures: Mapping[str, Tensor], stride: int, call: ForwardCall) -> dict[str, Crop]:
        """For each camera, in the policy's order, what of its image the network saw."""

    def resized(self, picture: Tensor) -> Tensor:
        """An image ``(b, 3, h, w)`` after the policy's own resize."""
        return picture

    def views(self, call: ForwardCall) -> Views:
        strides = {self.stride(layer) for layer in call.student_layers or (self.default_student_layer,)}
        if len(strides) > 1:
            raise AdapterError(
                f"The layers {', '.join(map(str, call.student_layers))} of {self.name} have cells of {sorted(strides)} "
                "pixels, which lie on different grids.",
                "Align layers of one stride.",
            )
        batch = call.arguments["batch"]
        pictures = self._pictures(self._as_seen_by_the_camera(batch))
        crops = self.crops(pictures, strides.pop(), call)
        if len({crop.view for crop in crops.values()}) > 1:
            sizes = sorted({crop.size for crop in crops.values()})
            raise ViewsError(f"The cameras' images are of different sizes: {sizes}.", "Resize them to one size.")
        views = [crop.cut(self.resized(pictures[key])) for key, crop in crops.items()]
        images = torch.stack(views, 1).float()
        present = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        return self.assemble(batch, images, crops, present)

    def _pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The cameras' images ``(b, 3, h, w)``, in the policy's order; of several time steps the last."""
        pictures = {key: batch[key] for key in self.policy.config.image_features}
        return {key: value[:, -1] if value.ndim == 5 else value for key, value in pictures.items()}


def size_of(picture: Tensor) -> Size:
    """Height and width of an image ``(b, 3, h, w)``."""
    return picture.shape[-2], picture.shape[-1]
