"""Taking up the projector, the step counter and the statistics of an earlier run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lerobot_policy_spatial_forcing.sources import fetch
from lerobot_policy_spatial_forcing.trainer import Trainer
from sfkit import SpatialForcing
from sfkit.config import SpatialForcingConfig
from sfkit.errors import CheckpointError
from sfkit.saving import checkpoint
from sfkit.saving.trust import Published
from sfkit.utils.places import digest_in

logger = logging.getLogger("sfkit")

#: Calls of ``policy.train()`` up to the first step: one before LeRobot's loop and one in the step. A step that is not
#: aligned is not counted, and must not be taken for the first one again and again.
_CALLS = 2


def restore(handle: SpatialForcing, source: str | Path, revision: str | None, trainer: Trainer) -> None:
    """Load what ``source/spatial_forcing/`` holds, if there is such a folder; a new run begins at step 0 all the same.

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
    _require_same(handle.config, checkpoint.read_config(folder), folder)
    checkpoint.load_into(handle, folder)
    if trainer.resume is False:
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


def _require_same(now: SpatialForcingConfig, saved: SpatialForcingConfig, folder: Path) -> None:
    """Two teachers of one width fit one projector, and it would not be noticed."""
    wanted, found = _what(Published.of(now).config), _what(saved)
    if wanted != found:
        raise CheckpointError(
            f"{folder} was trained with {found}, and this run asks for {wanted}.",
            "Give the same teacher, layers and projector, or take spatial_forcing/ away to begin with a new projector.",
        )


def _what(config: SpatialForcingConfig) -> str:
    pairs = ", ".join(
        f"student layer {pair.student_layer} -> {pair.teacher.name}{_digests(pair.teacher.options)} "
        f"layer {pair.teacher_layer}"
        for pair in config.pairs
    )
    return f"{pairs}, projector {config.projector.name}"


def _digests(options: Mapping[str, object]) -> str:
    """What local weights are known by, once their path is not saved."""
    found = [f"{key} sha256:{digest}" for key, item in options.items() if (digest := digest_in(item))]
    return f" ({', '.join(found)})" if found else ""
