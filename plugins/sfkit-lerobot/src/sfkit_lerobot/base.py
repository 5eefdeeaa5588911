"""What the adapters of LeRobot's policies share: cameras, geometry, the token span and the logs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfkit.component import AnyOptions
from sfkit.config import Options
from sfkit.errors import AdapterError, ShapeError, ViewsError
from sfkit.policies.base import ForwardCall, PolicyAdapter, TapPoint
from sfkit.policies.loss import replace_loss
from sfkit.types import FeatureMap, Views
from sfkit_lerobot.cameras import explain_missing, view_geometry
from sfkit_lerobot.letterbox import Letterbox, Size
from sfkit_lerobot.logs import LogWindow
from sfkit_lerobot.normalization import denormalized, visual_mode

LANGUAGE_TOKENS = "observation.language.tokens"


class LeRobotOptions(Options):
    """Options of the LeRobot adapters."""

    image_stats: dict[str, dict[str, tuple[float, ...]]] = Field(
        default_factory=dict,
        description="Statistics of each camera, for a policy that normalises pictures: see image_stats(dataset).",
    )


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one view in the sequence.

    Attributes:
        grid: Rows and columns of visual tokens.
        before: Marker tokens before them.
        after: Marker tokens after them.
    """

    grid: tuple[int, int]
    before: int = 0
    after: int = 0

    @property
    def length(self) -> int:
        """Tokens of one view, markers included."""
        return self.before + self.grid[0] * self.grid[1] + self.after


class LeRobotAdapter(PolicyAdapter):
    """Base of the adapters: ``forward(batch) -> (loss, logs)``, views first in the sequence of the tapped decoder.

    Subclasses say where the decoder is, how a picture becomes a view, and how a view becomes tokens.
    """

    Options: ClassVar[type[Options]] = LeRobotOptions
    options: LeRobotOptions
    policy: Any
    #: Path from the policy to its language decoder, a module with ``layers`` and ``norm``.
    decoder_path: ClassVar[str]

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        self._refuse_unusable_features()
        self._sequence_length: int | None = None
        self._log = LogWindow()

    # ------------------------------------------------------------------------- what a family of policies defines

    @abstractmethod
    def prepare(self, batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """The policy's own preprocessing: views ``(b, 3, h, w)`` in [-1, 1], and which samples have them ``(b,)``.

        Cameras that are in the batch come first, in the order of ``config.image_features``, then the missing ones.
        """

    @abstractmethod
    def letterbox(self, source: Size) -> Letterbox:
        """How a picture of this height and width becomes a view."""

    @abstractmethod
    def layout(self, view: Size) -> TokenLayout:
        """The tokens of a view.

        Raises:
            AdapterError: The view does not divide into a grid.
        """

    @abstractmethod
    def sequence_length(self, visual: int, text: int) -> int:
        """Length of the tapped sequence for so many tokens of views and of text."""

    # ---------------------------------------------------------------------------------------------------- taps

    @property
    def decoder(self) -> Any:
        """The language decoder."""
        return self.policy.get_submodule(self.decoder_path)

    @property
    def num_layers(self) -> int:
        return len(self.decoder.layers)

    def dim(self, depth: int) -> int:
        return int(self.decoder.config.hidden_size)

    def tap(self, depth: int) -> TapPoint:
        decoder = self.decoder
        if depth == self.num_layers:
            return TapPoint(decoder.norm, f"{self.decoder_path}.norm")
        path = f"{self.decoder_path}.layers.{depth}.input_layernorm"
        return TapPoint(decoder.layers[depth].input_layernorm, path)

    # --------------------------------------------------------------------------------------------------- views

    def views(self, call: ForwardCall) -> Views:
        batch = call.arguments["batch"]
        pictures, present = self.prepare(self._as_seen_by_the_camera(batch))
        boxes = self._boxes(batch, len(pictures))
        sizes = {tuple(picture.shape[-2:]) for picture in pictures}
        if len(sizes) > 1:
            raise ViewsError(
                f"The views are of different sizes: {sorted(sizes)}.",
                "Let the policy resize them to one size (SmolVLA: resize_imgs_with_padding).",
            )
        images = torch.stack(pictures, 1).float() * 0.5 + 0.5
        self._sequence_length = self._expected_length(batch, len(boxes), (images.shape[-2], images.shape[-1]))
        geometry = view_geometry(self.cameras, batch, boxes, images)
        return Views(
            images=images,
            valid=self._valid(boxes, present, images),
            names=tuple(boxes),
            depth=geometry.depth,
            intrinsics=geometry.intrinsics,
            world_from_camera=geometry.world_from_camera,
            source_to_view=self._source_to_view(boxes, images),
        )

    def explain_missing(self, field: str, call: ForwardCall) -> str:
        names = list(self.policy.config.image_features)
        return explain_missing(field, self.cameras, call.arguments["batch"], names)

    def _expected_length(self, batch: Mapping[str, Any], views: int, size: Size) -> int | None:
        """Length of the tapped sequence; None for a batch without text, of which only the views can be asked."""
        text = batch.get(LANGUAGE_TOKENS)
        visual = views * self.layout(size).length
        return None if text is None else self.sequence_length(visual, text.shape[1])

    def _as_seen_by_the_camera(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with its pictures as they were before the normalisation, so that their resize is undisturbed."""
        mode = visual_mode(self.policy.config)
        if mode == "IDENTITY":
            return batch
        stats = self.options.image_stats
        present = [key for key in self.policy.config.image_features if key in batch]
        return {**batch, **{key: denormalized(batch[key], mode, stats.get(key), key) for key in present}}

    def _boxes(self, batch: Mapping[str, Any], count: int) -> dict[str, Letterbox | None]:
        """For each view, in the order of the tokens, how it was made; None for a camera that is missing.

        The order is the policy's, never that of the batch or of the dataset.
        """
        keys = list(self.policy.config.image_features)
        boxes: dict[str, Letterbox | None] = {
            key: self.letterbox((batch[key].shape[-2], batch[key].shape[-1])) for key in keys if key in batch
        }
        boxes.update({key: None for key in keys if key not in batch})
        return dict(list(boxes.items())[:count])

    def _valid(self, boxes: Mapping[str, Letterbox | None], present: list[Tensor], images: Tensor) -> Tensor:
        inside = torch.stack([_no_pixel(images) if box is None else box.valid for box in boxes.values()])
        samples = torch.stack([mask.to(images.device) for mask in present], 1)
        return inside.to(images.device) & samples[:, :, None, None]

    def _source_to_view(self, boxes: Mapping[str, Letterbox | None], images: Tensor) -> Tensor:
        matrices = [torch.eye(3) if box is None else box.matrix for box in boxes.values()]
        return torch.stack(matrices).to(images.device).expand(len(images), -1, -1, -1)

    # -------------------------------------------------------------------------------------------------- tokens

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        layout = self.layout(views.size)
        v, tokens = len(views.names), layout.grid[0] * layout.grid[1]
        expected = self._sequence_length
        if hidden.shape[1] < v * layout.length or (expected is not None and hidden.shape[1] != expected):
            raise ShapeError(
                f"The decoder of {type(self.policy).__name__} was given {hidden.shape[1]} tokens, expected {expected} "
                f"with {v} views of {layout.grid[0]}x{layout.grid[1]} tokens in front.",
                "This version of LeRobot lays out its tokens in another way: the adapter must be changed.",
            )
        visual = hidden[:, : v * layout.length].reshape(len(hidden), v, layout.length, -1)
        visual = visual[:, :, layout.before : layout.before + tokens]
        return FeatureMap(visual.reshape(len(hidden), v, *layout.grid, -1), views.token_mask(layout.grid))

    # ---------------------------------------------------------------------------------------------------- loss

    def with_loss(self, output: Any, loss: Tensor, logs: Mapping[str, Tensor]) -> Any:
        output = replace_loss(output, loss)
        if not logs:
            return output
        self._log.add({key: value.detach().float().to(loss.device) for key, value in logs.items()})
        info = {**(output[1] or {}), **self._log.due()}
        return (output[0], info, *output[2:])

    def log_every(self, steps: int, first: int = 0) -> None:
        """Log means over so many steps, at each step whose number they divide, instead of the figures of every step.

        LeRobot logs plain numbers only, and to make one waits for the device: not needed where they are not shown.

        Args:
            steps: As the trainer's ``log_freq``.
            first: Steps that the trainer has done before.
        """
        self._log = LogWindow(steps, first)

    # -------------------------------------------------------------------------------------------------- checks

    def _refuse_unusable_features(self) -> None:
        features = self.policy.config.image_features
        if not features:
            raise AdapterError(
                f"{type(self.policy).__name__} has no pictures among its input features.",
                "Build it with the dataset's cameras in config.input_features.",
            )
        wrong = [key for key, feature in features.items() if feature.shape[0] != 3]
        if wrong:
            raise AdapterError(
                f"{', '.join(wrong)}: not a picture of three channels, but an input of the policy. LeRobot types depth "
                "maps as pictures.",
                "Build the policy from sfkit_lerobot.policy_features(dataset.meta.features), or call "
                "sfkit_lerobot.strip_geometry(config) first; the depth reaches the teacher through cameras=.",
            )


def _no_pixel(images: Tensor) -> Tensor:
    return torch.zeros(images.shape[-2:], dtype=torch.bool)
