"""Settings of the running trainer and its dataset, neither of which LeRobot passes to the policy."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sfkit_lerobot.features import is_depth_feature
from torch import nn
from torch.utils.data import Dataset

from sfkit.errors import ConfigError

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset


@dataclass(frozen=True)
class Trainer:
    """Settings of the run.

    Attributes:
        log_freq: The trainer logs at every this many steps. 1 where the policy is built by other means.
        resume: Whether a run is resumed; None where that is not known.
        rename_map: Batch keys of the dataset, by the names that the policy has for them.
        dataset: The open dataset, which knows its unit of depth and its transforms; None where it is not known.
    """

    log_freq: int = 1
    resume: bool | None = None
    rename_map: Mapping[str, str] = field(default_factory=dict)
    dataset: LeRobotDataset | None = None

    def refuse_unknown_depth(self) -> None:
        """Refuse a dataset of which it is not known how its depth arrives.

        Raises:
            ConfigError: It is not known which dataset is open, or it is streamed.
        """
        if self.dataset is None:
            raise ConfigError(
                "The unit of depth and the image transforms are settings of the open dataset, and of the policy's "
                "dataset there is only the metadata.",
                "Open the LeRobotDataset in the function that calls make_policy(config, ds_meta=dataset.meta), or wrap "
                "LeRobot's own policy: SpatialForcing.wrap(policy, ..., cameras=sfkit_lerobot.camera_rig(dataset)).",
            )
        if self.streams:
            raise ConfigError(
                "A streamed dataset gives no depth that can be relied on: LeRobot ignores --dataset.depth_output_unit "
                "there, and applies image_transforms to depth videos.",
                "Use --dataset.streaming=false, or a teacher that needs images alone.",
            )

    @property
    def streams(self) -> bool:
        """Whether the dataset is LeRobot's streamed one."""
        from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

        return isinstance(self.dataset, StreamingLeRobotDataset)


#: Beside the policy and not in it: the dataset follows neither its copies nor its pickles.
_TRAINERS: weakref.WeakKeyDictionary[nn.Module, Trainer] = weakref.WeakKeyDictionary()


def trainer_of(policy: nn.Module, config: PreTrainedConfig, meta: LeRobotDatasetMetadata | None) -> Trainer:
    """:func:`read_trainer` at the first call for a policy, from its constructor: adapters of PEFT come later."""
    if policy not in _TRAINERS:
        _TRAINERS[policy] = read_trainer(config, meta)
    return _TRAINERS[policy]


def read_trainer(config: PreTrainedConfig, meta: LeRobotDatasetMetadata | None) -> Trainer:
    """The settings of the trainer that builds a policy; defaults where something else does.

    They are those that the trainer really uses, whether they came from the command line, a file, the Hub or a program.

    Args:
        config: The policy's configuration, by which the trainer's is known.
        meta: LeRobot's metadata of the dataset, by which the dataset is known.
    """
    from lerobot.configs.train import TrainPipelineConfig

    settings: TrainPipelineConfig | None = None
    dataset = None
    for value in _caller_locals():
        if settings is None and isinstance(value, TrainPipelineConfig) and value.policy is config:
            settings = value
        if dataset is None and isinstance(value, Dataset) and getattr(value, "meta", None) is meta is not None:
            dataset = value
    if settings is None:
        return Trainer(dataset=dataset)
    return Trainer(max(1, settings.log_freq), settings.resume, dict(settings.rename_map), dataset)


def hide_depth(meta: LeRobotDatasetMetadata | None, rename_map: Mapping[str, str]) -> None:
    """Lead depth maps around the trainer's preprocessor, which may take them for pictures.

    X-VLA's divides what is below 256 by 255, and GR00T's shows them to the policy. The pipeline's converters do it,
    which no checkpoint holds: that is to be the one of the plain policy.

    Args:
        meta: LeRobot's metadata of the dataset.
        rename_map: Settings of the run.
    """
    from lerobot.processor import DataProcessorPipeline, batch_to_transition

    names = {
        key: rename_map.get(key, key)
        for key, feature in (meta.features.items() if meta is not None else ())
        if is_depth_feature(feature)
    }
    for value in _caller_locals():
        if names and isinstance(value, DataProcessorPipeline) and value.to_transition is batch_to_transition:
            beside = _Beside(names, value.to_output)
            value.to_transition, value.to_output = beside.hide, beside.bring_back


class _Beside:
    """What goes around a pipeline: from ``hide``, its first function, to ``bring_back``, its last."""

    def __init__(self, names: Mapping[str, str], to_output: Callable[[Any], Any]) -> None:
        self._names, self._to_output = names, to_output
        self._kept: dict[str, Any] = {}

    def hide(self, batch: Mapping[str, Any]) -> Any:
        from lerobot.processor import batch_to_transition

        self._kept = {name: batch[key] for key, name in self._names.items() if key in batch}
        return batch_to_transition({key: value for key, value in batch.items() if key not in self._names})

    def bring_back(self, transition: Any) -> Any:
        kept, self._kept = self._kept, {}
        return {**self._to_output(transition), **kept}


def _caller_locals() -> Iterator[object]:
    """The local variables of all callers, the nearest first: LeRobot's trainer keeps all that is its own in them."""
    frame = sys._getframe(2)
    while frame is not None:
        yield from list(frame.f_locals.values())
        frame = frame.f_back  # type: ignore[assignment]
