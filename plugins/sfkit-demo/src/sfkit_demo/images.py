"""Images of one arm for the report: frames, depth, and token grids as colors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sfkit_tools import pca_colors
from torch import Tensor, nn

if TYPE_CHECKING:
    from sfkit_demo.evaluate import Evaluator


@dataclass(frozen=True)
class Images:
    """``k`` held-out frames with all ``v`` cameras, as arrays, since arms run in processes of their own.

    Attributes:
        names: Camera names.
        tasks: Task text of each frame.
        images: ``(k, v, h, w, 3)`` uint8 as recorded.
        depth: ``(k, v, h', w')`` float32 meters; 0 where unknown.
        student: ``(k, v, gh, gw, 3)`` PCA colors of the policy's tokens.
        teacher: ``(k, v, gh, gw, 3)`` PCA colors of the teacher's features; NaN where masked.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    student: NDArray[np.float32]
    teacher: NDArray[np.float32]


def take_images(policy: nn.Module, evaluator: Evaluator) -> Images:
    """One frame of each task, in the middle of its first held-out episode.

    The principal components come from all held-out frames, minus the mean of each position: otherwise the colors would
    mostly show the position of a token.
    """
    frames, truth = evaluator.frames, evaluator.held_out
    chosen = _one_of_each_task(evaluator)
    rows = truth.rows[chosen]
    student = pca_colors(evaluator.tokens(policy, truth.rows), center_positions=True)
    teacher = pca_colors(truth.target, center_positions=True)
    depth = []
    for key, camera in frames.cameras.cameras.items():
        raw = frames.depth[camera.depth_key or ""][rows, 0]
        depth.append(torch.nan_to_num(raw) * frames.cameras.depth_scale(key))
    return Images(
        names=tuple(key.rsplit(".", 1)[-1] for key in frames.images),
        tasks=tuple(frames.tasks[row] for row in rows.tolist()),
        images=np.stack([image[rows].permute(0, 2, 3, 1).numpy() for image in frames.images.values()], axis=1),
        depth=np.stack([each.numpy() for each in depth], axis=1),
        student=student[chosen].numpy(),
        teacher=teacher[chosen].numpy(),
    )


def _one_of_each_task(evaluator: Evaluator) -> Tensor:
    """``(k,)`` indices among the held-out frames."""
    frames, rows = evaluator.frames, evaluator.held_out.rows
    chosen = []
    for task in sorted(set(frames.tasks)):
        mine = [i for i, row in enumerate(rows.tolist()) if frames.tasks[row] == task]
        first = frames.episode[rows[mine[0]]]
        episode = [i for i in mine if frames.episode[rows[i]] == first]
        chosen.append(episode[len(episode) // 2])
    return torch.tensor(chosen)
