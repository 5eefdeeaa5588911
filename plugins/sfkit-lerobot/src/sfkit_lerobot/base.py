"""What the adapters of LeRobot's policies share: the tap, the geometry of views, the loss and the logs."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.config import Options
from sfkit.errors import AdapterError
from sfkit.policies.base import ForwardCall, PolicyAdapter, TapPoint, replace_loss
from sfkit.registry.component import AnyOptions, Changeable, Harmless
from sfkit.views.geometry import on_device
from sfkit.views.types import Views
from sfkit_lerobot.cameras import explain_missing, view_geometry
from sfkit_lerobot.frame_keys import FrameKeys, keys_in
from sfkit_lerobot.letterbox import Placement
from sfkit_lerobot.logs import LogWindow
from sfkit_lerobot.normalization import Batch, denormalized, visual_mode

#: The version that the adapters were tested with.
TESTED = "0.6.1"


class LeRobotOptions(Options):
    """Options of the LeRobot adapters."""

    image_stats: Changeable[Harmless[dict[str, dict[str, tuple[float, ...]]]]] = Field(
        default_factory=dict,
        description="Statistics of each camera, for a policy that normalizes images: see image_stats(dataset).",
    )


class LeRobotAdapter(PolicyAdapter):
    """Base of the adapters: ``forward(batch) -> (loss, logs)``, and a decoder whose blocks begin with a norm.

    Subclasses say where the decoder is, what the policy sees and where its tokens are: with the views first in the
    sequence (:class:`sfkit_lerobot.prefix.PrefixAdapter`), or wherever the prompt has image tokens for them
    (:class:`sfkit_lerobot.image_tokens.ImageTokenAdapter`).
    """

    Options: ClassVar[type[Options]] = LeRobotOptions
    options: LeRobotOptions
    policy: Any
    #: Path from the policy to its language decoder, a module with ``layers`` and ``norm``.
    decoder_path: str
    #: The dataset, where its samples do not say which frames they are: for the feature store.
    frames: FrameKeys | None = None
    #: Which of several time steps in a batch is the present one.
    present_frame: ClassVar[int] = -1

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        self._log = LogWindow()
        try:
            self._refuse_unusable_features()
            self._read_policy()
            self._touch()
        except (AttributeError, LookupError, TypeError) as error:
            raise self._unlike_what_is_known(error) from error

    def _read_policy(self) -> None:
        """What a subclass reads of the policy when it is made."""

    def _touch(self) -> None:
        """Read all that ``wrap`` may ask for, so that a policy with other insides is refused at once."""
        for layer in range(self.num_layers + 1):
            self.dim(layer)
            self.tap(layer)
        self.extra_hooks()

    def _unlike_what_is_known(self, error: Exception) -> AdapterError:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.line for frame in frames if "sfkit_lerobot" in frame.filename]
        return AdapterError(
            f"{type(self.policy).__name__} is not built as the adapter {self.name!r} expects: {error}. It was looked "
            f"for in: {own[-1]}",
            f"The adapter is written for LeRobot {TESTED}, and {_version()} is installed. Use that, or write an "
            "adapter for this policy.",
        )

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def decoder(self) -> Any:
        """The language decoder."""
        return self.policy.get_submodule(self.decoder_path)

    @property
    def num_layers(self) -> int:
        return len(self.decoder.layers)

    def dim(self, layer: int) -> int:
        return int(self.decoder.config.hidden_size)

    def tap(self, layer: int) -> TapPoint:
        decoder = self.decoder
        if layer == self.num_layers:
            return TapPoint(decoder.norm, f"{self.decoder_path}.norm")
        path = f"{self.decoder_path}.layers.{layer}.input_layernorm"
        return TapPoint(decoder.layers[layer].input_layernorm, path)

    # --------------------------------------------------------------------------------------------------- views

    def _as_seen_by_the_camera(self, batch: Batch) -> Batch:
        """The batch with its images as they were before the normalization, so that their resize is undisturbed."""
        mode = visual_mode(self.policy.config)
        if mode == "IDENTITY":
            return batch
        stats = self.options.image_stats
        present = [key for key in self.policy.config.image_features if key in batch]
        return {**batch, **{key: denormalized(batch[key], mode, stats.get(key), key) for key in present}}

    def assemble(self, batch: Batch, images: Tensor, boxes: Mapping[str, Placement | None], present: Tensor) -> Views:
        """Views with all that is known of them.

        Args:
            batch: The batch of the policy's forward.
            images: ``(b, v, 3, h, w)`` in [0, 1], as the policy sees them.
            boxes: How each view was made, in the order of the tokens; None for a camera that is missing.
            present: ``(b, v)`` bool: which samples have which view.
        """
        geometry = view_geometry(self.cameras, batch, boxes, images, self.present_frame)
        return Views(
            images=images,
            valid=self._valid(boxes, present, images),
            names=tuple(boxes),
            depth=geometry.depth,
            intrinsics=geometry.intrinsics,
            world_from_camera=geometry.world_from_camera,
            source_to_view=self._source_to_view(boxes, images),
            keys=keys_in(batch, self.frames),
        )

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        names = list(self.policy.config.image_features)
        return explain_missing(field, self.cameras, call.arguments["batch"], names)

    def _valid(self, boxes: Mapping[str, Placement | None], present: Tensor, images: Tensor) -> Tensor:
        """``(b, v, h, w)`` bool from ``(b, v)`` samples that have a view, and images ``(b, v, 3, h, w)``."""
        inside = torch.stack([_no_pixel(images) if box is None else box.valid for box in boxes.values()])
        return on_device(inside, images.device) & on_device(present, images.device)[:, :, None, None]

    def _source_to_view(self, boxes: Mapping[str, Placement | None], images: Tensor) -> Tensor:
        """``(b, v, 3, 3)`` float32, for images ``(b, v, 3, h, w)``."""
        matrices = [torch.eye(3) if box is None else box.matrix for box in boxes.values()]
        return on_device(torch.stack(matrices), images.device).expand(len(images), -1, -1, -1)

    # ---------------------------------------------------------------------------------------------------- loss

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        """The output with another loss, ``()`` or ``(b,)``, and figures ``()`` beside LeRobot's own."""
        return self._log.beside(replace_loss(output, loss), logs)

    def log_every(self, steps: int, first: int = 0) -> None:
        """Log means over so many steps, at each step whose number they divide, instead of the figures of every step.

        LeRobot logs plain numbers only, and to make one waits for the device: not needed where they are not shown.

        Args:
            steps: As the trainer's ``log_freq``.
            first: Steps that the trainer has done before.
        """
        self._log = LogWindow(steps, first)

    def writes_checkpoints(self) -> bool:
        # Up to 0.6.1 the trainer asks its first process alone to save. Later ones ask all, without which FSDP2's parts
        # could not be gathered, and the policy writes in the first.
        asks_all = "state_dict" not in inspect.signature(type(self.policy)._save_pretrained).parameters
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return not (asks_all and distributed and torch.distributed.get_rank())

    # -------------------------------------------------------------------------------------------------- checks

    def _refuse_unusable_features(self) -> None:
        features = self.policy.config.image_features
        if not features:
            raise AdapterError(
                f"{type(self.policy).__name__} has no images among its input features.",
                "Build it with the dataset's cameras in config.input_features.",
            )
        wrong = [key for key, feature in features.items() if feature.shape[0] != 3]
        if wrong:
            raise AdapterError(
                f"{', '.join(wrong)}: not an image of three channels, but an input of the policy. LeRobot types depth "
                "maps as images.",
                "Build the policy from sfkit_lerobot.policy_features(dataset.meta.features), or call "
                "sfkit_lerobot.strip_geometry(config) first; the depth reaches the teacher through cameras=.",
            )


def _version() -> str:
    try:
        return version("lerobot")
    except PackageNotFoundError:
        return "none"


def _no_pixel(images: Tensor) -> Tensor:
    """``(h, w)`` bool, all False, for images ``(b, v, 3, h, w)``."""
    return torch.zeros(images.shape[-2:], dtype=torch.bool)
