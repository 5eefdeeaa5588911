"""Taking up the projector, the step counter and the statistics of an earlier run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from lerobot_policy_spatial_forcing.sources import fetch
from lerobot_policy_spatial_forcing.trainer import Trainer
from sfkit import SpatialForcing
from sfkit.errors import CheckpointError
from sfkit.saving import checkpoint

logger = logging.getLogger("sfkit")

#: Calls of ``policy.train()`` up to the first step: one before LeRobot's loop and one in the step. A step that is not
#: aligned is not counted, and must not be taken for the first one again and again.
_CALLS = 2


def restore(
    handle: SpatialForcing, source: str | Path, revision: str | None, trainer: Trainer, given: Collection[str]
) -> None:
    """Load what ``source/spatial_forcing/`` holds, if there is such a folder; a new run begins at step 0 all the same.

    Args:
        handle: The handle of the policy.
        source: The policy's checkpoint, a folder or a repository.
        revision: Of the repository.
        trainer: Settings of the run.
        given: Names of what the ``sf`` block sets: weight and schedule may then be others than saved. In a new run they
            may in any case.

    Raises:
        CheckpointError: A run is resumed and there is none, or it was trained with something else.
    """
    folder = fetch(source, revision)
    try:
        folder = checkpoint.locate(folder)
    except CheckpointError:
        if trainer.resume:
            raise
        return
    is_new = trainer.resume is False
    checkpoint.load_into(handle, folder, given=("weight", "schedule") if is_new else given)
    if is_new:
        handle.restart_schedule()
    logger.info("sfkit: projector taken from %s, at step %d", folder, handle.steps)


class RandomState:
    """The random state of the moment at which a checkpoint was saved, for the first step after it.

    LeRobot restores it too, but then starts its data loader, which draws a number: every noise of the resumed run would
    be another than that of the uninterrupted one.

    Args:
        checkpoint_folder: What LeRobot calls ``pretrained_model``.
        handle: The handle of the policy that is resumed.
    """

    def __init__(self, checkpoint_folder: str | Path, handle: SpatialForcing) -> None:
        self.folder = Path(checkpoint_folder).parent / "training_state"
        self._first = handle.steps
        self._left = _CALLS

    def restore_before(self, handle: SpatialForcing | None) -> bool:
        """Restore it, unless a step has been made; returns whether this may be asked again."""
        if handle is None or handle.steps != self._first or not self._left or not self.folder.is_dir():
            return False
        self._left -= 1
        from lerobot.utils.random_utils import load_rng_state

        load_rng_state(self.folder)
        return True
