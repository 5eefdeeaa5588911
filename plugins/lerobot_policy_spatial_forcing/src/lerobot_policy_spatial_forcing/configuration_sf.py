"""Configurations ``sf_*``: LeRobot's own, plus the ``sf`` block.

LeRobot finds the policy and the processors by the names here: ``SFxConfig`` in ``configuration_sf`` stands for
``SFxPolicy`` in ``modeling_sf`` and ``make_sf_x_pre_post_processors`` in ``processor_sf``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig
from sfkit_lerobot import strip_geometry

from lerobot_policy_spatial_forcing.bases import BASES, Base
from lerobot_policy_spatial_forcing.options import SfOptions, SpatialForcingOptions
from lerobot_policy_spatial_forcing.sources import adopt_base_config

logger = logging.getLogger("sfkit")


class SfConfig:
    """What the configurations share; comes before LeRobot's class in the order of methods.

    Attributes:
        base: The policy that is aligned.
        sf: The block of the command line.
        given: Fields that the command line, a file or a program has set, LeRobot's defaults among their values.
    """

    base: ClassVar[Base]
    sf: SfOptions
    given: frozenset[str]
    pretrained_path: Path | None
    pretrained_revision: str | None
    use_peft: bool

    def __post_init__(self) -> None:
        # Before the dataset is opened: its chunks are as long as the checkpoint's configuration says.
        if self.pretrained_path is not None and self.sf.base_config != str(self.pretrained_path):
            adopt_base_config(self)
            self.sf.base_config = str(self.pretrained_path)
        super().__post_init__()  # type: ignore[misc]

    def set_dataset_feature_metadata(self, features: Mapping[str, object]) -> None:
        """LeRobot calls this once the inputs are known, before it builds the policy and its processors."""
        inherited = getattr(super(), "set_dataset_feature_metadata", None)
        if inherited is not None:
            inherited(features)
        removed = strip_geometry(self)
        if removed:
            logger.info("sfkit: not an input of the policy, for the teacher alone: %s", ", ".join(removed))

    def plain(self) -> PreTrainedConfig:
        """The same configuration as LeRobot's own class would hold it."""
        kind = self.base.config_class
        plain = object.__new__(kind)
        # Field by field, past the constructor: it would choose a device, and warn, a second time.
        vars(plain).update({field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})
        return plain

    def _save_pretrained(self, save_directory: Path) -> None:
        self.plain()._save_pretrained(save_directory)


def _noting_what_is_given(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that notes which fields it was given, before ``__post_init__`` looks."""
    names = list(inspect.signature(init).parameters)

    @functools.wraps(init)
    def noting(self: SfConfig, *args: object, **kwargs: object) -> None:
        self.given = frozenset((*names[1 : len(args) + 1], *kwargs))
        init(self, *args, **kwargs)

    return noting


def _make(base: Base) -> type[SfConfig]:
    block = ("sf", SpatialForcingOptions, dataclasses.field(default_factory=SpatialForcingOptions))
    made: Any = dataclasses.make_dataclass(
        f"SF{base.stem}Config", [block], bases=(SfConfig, base.config_class), namespace={"base": base}, module=__name__
    )
    made.__doc__ = f"``{base.name}`` of LeRobot, aligned while it trains."
    made.__init__ = _noting_what_is_given(made.__init__)
    PreTrainedConfig.register_subclass(base.type)(made)
    return made  # type: ignore[no-any-return]


#: Configuration class by type. LeRobot's configurations need none of its extras; one that fails is left out, and said.
CONFIGS: dict[str, type[SfConfig]] = {}
for _base in BASES:
    try:
        CONFIGS[_base.type] = _make(_base)
    except ImportError as error:
        logger.warning(
            "sfkit: %s is not available: %s. Install it with: pip install 'lerobot[%s]'.",
            _base.type,
            error,
            _base.extra,
        )
globals().update({config.__name__: config for config in CONFIGS.values()})
