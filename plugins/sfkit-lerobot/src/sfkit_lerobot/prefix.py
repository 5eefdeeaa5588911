"""Policies whose views come first in the sequence of the tapped decoder, one after the other."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfkit.errors import ShapeError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.registry.component import AnyOptions
from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.base import LeRobotAdapter
from sfkit_lerobot.letterbox import Letterbox, Size
from sfkit_lerobot.normalization import Batch

LANGUAGE_TOKENS = "observation.language.tokens"


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


class PrefixAdapter(LeRobotAdapter):
    """Base of these adapters. Subclasses say how an image becomes a view, and how a view becomes tokens."""

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        self._sequence_length: int | None = None

    # ------------------------------------------------------------------------- what a family of policies defines

    @abstractmethod
    def prepare(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The policy's own preprocessing: views ``(b, 3, h, w)`` in [-1, 1], and which samples have them ``(b,)``.

        Cameras that are in the batch come first, in the order of ``config.image_features``, then the missing ones.
        """

    @abstractmethod
    def letterbox(self, source: Size) -> Letterbox:
        """How an image of this height and width becomes a view."""

    @abstractmethod
    def layout(self, view: Size) -> TokenLayout:
        """The tokens of a view.

        Raises:
            AdapterError: The view does not divide into a grid.
        """

    @abstractmethod
    def sequence_length(self, visual: int, text: int) -> int:
        """Length of the tapped sequence for so many tokens of views and of text."""

    # --------------------------------------------------------------------------------------------------- views

    def views(self, call: ForwardCall) -> Views:
        batch = call.arguments["batch"]
        found = self.views_of(batch, self._as_seen_by_the_camera(batch))
        self._sequence_length = self._expected_length(batch, len(found.names), found.size)
        return found

    def views_of(self, batch: Batch, as_seen: Batch) -> Views:
        """Views of a batch, and of what its images are without normalization."""
        pictures, present = self.prepare(as_seen)
        boxes = self._boxes(batch, len(pictures))
        sizes = {tuple(picture.shape[-2:]) for picture in pictures}
        if len(sizes) > 1:
            raise ViewsError(
                f"The views are of different sizes: {sorted(sizes)}.",
                "Let the policy resize them to one size (SmolVLA: resize_imgs_with_padding).",
            )
        images = torch.stack(pictures, 1).float() * 0.5 + 0.5
        return self.assemble(batch, images, boxes, torch.stack([mask.to(images.device) for mask in present], 1))

    def _expected_length(self, batch: Batch, views: int, size: Size) -> int | None:
        """Length of the tapped sequence; None for a batch without text, of which only the views can be asked."""
        text = batch.get(LANGUAGE_TOKENS)
        visual = views * self.layout(size).length
        return None if text is None else self.sequence_length(visual, text.shape[1])

    def _boxes(self, batch: Batch, count: int) -> dict[str, Letterbox | None]:
        """For each view, in the order of the tokens, how it was made; None for a camera that is missing.

        The order is the policy's, never that of the batch or of the dataset.
        """
        keys = list(self.policy.config.image_features)
        boxes: dict[str, Letterbox | None] = {
            key: self.letterbox((batch[key].shape[-2], batch[key].shape[-1])) for key in keys if key in batch
        }
        boxes.update({key: None for key in keys if key not in batch})
        return dict(list(boxes.items())[:count])

    # -------------------------------------------------------------------------------------------------- tokens

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """``(b, n, d)`` to the tokens ``(b, v, gh, gw, d)`` at its beginning."""
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
