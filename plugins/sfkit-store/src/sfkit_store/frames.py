"""The frames of LeRobot datasets, as a policy sees them or as they were recorded. Needs sfkit-lerobot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from sfkit.errors import ConfigError
from sfkit.factory.components import build_adapter
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.views.cameras import CameraRig
from sfkit.views.types import Views
from sfkit_store.shards import Key

if TYPE_CHECKING:
    from sfkit_lerobot import FrameKeys


class LeRobotFrames:
    """The frames of a dataset, in its order, for :func:`sfkit_store.build_store`.

    With a policy, the views are those of its adapter: the pixels that a training run shows its teacher. Without one
    they are the recorded pictures, all of one size.

    Args:
        dataset: A ``LeRobotDataset``, a combination of some, or ``FrameKeys``; without image transforms. For a policy
            that reads several time steps it has the same ``delta_timestamps`` as for training.
        policy: A LeRobot policy.
        preprocessor: The policy's own, as for training; without it the batch reaches the adapter as the dataset has it.
        adapter: The policy's adapter, where it takes options.
        cameras: For teachers that need geometry.
        batch_size: Frames that the teacher sees at a time.
        num_workers: Processes that load pictures.

    Raises:
        ConfigError: The dataset has image transforms, or the policy crops at random within its forward.
    """

    def __init__(
        self,
        dataset: Any,
        policy: nn.Module | None = None,
        *,
        preprocessor: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        adapter: PolicyAdapter | None = None,
        cameras: CameraRig | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        from sfkit_lerobot import FrameKeys
        from sfkit_lerobot.combined import parts

        self.dataset: FrameKeys = dataset if isinstance(dataset, FrameKeys) else FrameKeys(dataset)
        self.batch_size, self.num_workers, self.preprocessor = batch_size, num_workers, preprocessor
        if any(getattr(part, "image_transforms", None) is not None for part in parts(dataset)):
            raise ConfigError(
                "The dataset has image transforms, which change each time a frame is loaded.",
                "Open it without image_transforms to build a store.",
            )
        self.adapter = None if policy is None else build_adapter(policy, adapter)
        if self.adapter is not None:
            self.adapter.cameras = cameras
            if self.adapter.extra_hooks():
                raise ConfigError(
                    f"Policies of the kind {self.adapter.name!r} crop or change their pictures within forward, so that "
                    "stored features would be of other pixels.",
                    "Align them with the teacher itself.",
                )
        self.pixels = "recorded" if self.adapter is None else f"policy {self.adapter.name}"
        self.datasets: dict[str, str | None] = self.dataset.revisions
        self._keys: list[Key] | None = None

    @property
    def keys(self) -> Sequence[Key]:
        """Of all frames, in order."""
        if self._keys is None:
            self._keys = self.dataset.keys()
        return self._keys

    def views(self, indices: Sequence[int]) -> Iterator[Views]:
        """The views of some frames, in this order."""
        loader = DataLoader(
            Subset(self.dataset, list(indices)), batch_size=self.batch_size, num_workers=self.num_workers
        )
        with torch.no_grad():
            for batch in loader:
                seen = batch if self.preprocessor is None else self.preprocessor(batch)
                if self.adapter is None:
                    yield self._recorded(seen)
                else:
                    yield self.adapter.views(ForwardCall({"batch": seen}, None))

    def _recorded(self, batch: Mapping[str, Any]) -> Views:
        """The pictures as they were recorded.

        Raises:
            ConfigError: They are of different sizes.
        """
        from sfkit_lerobot.combined import parts
        from sfkit_lerobot.frame_keys import keys_in

        meta = parts(self.dataset)[0].meta
        cameras = [key for key in meta.camera_keys if key not in meta.depth_keys]
        pictures: dict[str, Tensor] = {key: batch[key] for key in cameras}
        if len({tuple(picture.shape) for picture in pictures.values()}) != 1:
            sizes = ", ".join(f"{key} {tuple(picture.shape[-2:])}" for key, picture in pictures.items()) or "none"
            raise ConfigError(
                f"The recorded pictures are not of one size: {sizes}.", "Build with a policy, which resizes them."
            )
        images = torch.stack(list(pictures.values()), 1).float()
        valid = torch.ones(*images.shape[:2], *images.shape[-2:], dtype=torch.bool)
        return Views(images, valid, tuple(pictures), keys=keys_in(batch))
