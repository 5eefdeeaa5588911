"""Policies whose prompt holds an image token for each visual token, wherever it pleases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfkit.errors import ShapeError
from sfkit.policies.base import ForwardCall
from sfkit.registry.component import AnyOptions
from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.base import LeRobotAdapter
from sfkit_lerobot.letterbox import Placement, Size
from sfkit_lerobot.normalization import Batch


@dataclass(frozen=True)
class Prompt:
    """What a language model is given.

    Attributes:
        ids: ``(b, n)`` tokens of the prompt.
        image_token: The token that stands for a visual token.
        images: ``(b, v, 3, h, w)`` in [0, 1]: the views that are aligned.
        grid: Rows and columns of a view's tokens.
        boxes: How each view was made, in the order of the tokens; None for a camera that is missing.
        present: ``(b, v)`` bool: which samples have which view.
        earlier: Views before these in the prompt, such as past frames.
        later: Views behind these.
        behind: For each view, further tokens directly behind its own, such as those of crops of it.
    """

    ids: Tensor
    image_token: int
    images: Tensor
    grid: Size
    boxes: Mapping[str, Placement | None]
    present: Tensor
    earlier: int = 0
    later: int = 0
    behind: tuple[int, ...] = ()


class ImageTokenAdapter(LeRobotAdapter):
    """Base of these adapters. Subclasses give the prompt, made by the policy's own processor."""

    def __init__(self, policy: nn.Module, options: AnyOptions = None) -> None:
        super().__init__(policy, options)
        self._prompt: Prompt | None = None
        self._is_checked = False

    @abstractmethod
    def prompt(self, batch: Batch) -> Prompt:
        """The prompt that the policy makes of a batch, and what it shows."""

    def views(self, call: ForwardCall) -> Views:
        batch = call.arguments["batch"]
        prompt = self.prompt(batch)
        self._prompt = prompt
        return self.assemble(batch, prompt.images, prompt.boxes, prompt.present)

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """``(b, n, d)`` to the tokens ``(b, v, gh, gw, d)`` at the image tokens of the prompt."""
        prompt = self._prompt
        assert prompt is not None
        b, v, (gh, gw) = len(hidden), len(views.names), prompt.grid
        if tuple(hidden.shape[:2]) != tuple(prompt.ids.shape):
            raise ShapeError(
                f"The decoder of {type(self.policy).__name__} was given {tuple(hidden.shape[:2])} tokens for a prompt "
                f"of {tuple(prompt.ids.shape)}.",
                "This version of LeRobot lays out its tokens in another way: the adapter must be changed.",
            )
        is_visual = prompt.ids.to(hidden.device) == prompt.image_token
        self._expect(is_visual, (prompt.earlier + v + prompt.later) * gh * gw + sum(prompt.behind))
        # A stable sort brings the image tokens to the front in their order, without waiting for the device.
        order = is_visual.byte().argsort(dim=1, descending=True, stable=True)
        mine = order[:, prompt.earlier * gh * gw : (prompt.earlier + v) * gh * gw + sum(prompt.behind)]
        if any(prompt.behind):
            parts = torch.split(mine, [size for more in prompt.behind for size in (gh * gw, more)], dim=1)
            mine = torch.cat(parts[::2], dim=1)
        visual = hidden.gather(1, mine.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return FeatureMap(visual.reshape(b, v, gh, gw, -1), views.token_mask((gh, gw)))

    def _expect(self, is_visual: Tensor, count: int) -> None:
        """Count the image tokens ``(b, n)`` of the first batch alone: counting waits for the device."""
        if self._is_checked:
            return
        found = sorted(set(is_visual.sum(1).tolist()))
        if found != [count]:
            raise ShapeError(
                f"The prompts of {type(self.policy).__name__} hold {found} image tokens, expected {count}.",
                "Something else makes the prompt than the adapter takes for granted: check the processor.",
            )
        self._is_checked = True


def every(b: int, v: int, device: torch.device | None = None) -> Tensor:
    """``(b, v)``: every sample has every view."""
    return torch.ones(b, v, dtype=torch.bool, device=device)
