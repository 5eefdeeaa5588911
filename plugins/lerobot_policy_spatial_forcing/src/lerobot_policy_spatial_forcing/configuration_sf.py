"""Configurations ``sf_*``: one for each policy type that LeRobot knows, its own plus the ``sf`` block.

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

import lerobot.policies  # noqa: F401 - registers LeRobot's own types
from lerobot.configs import PreTrainedConfig
from sfkit_lerobot import strip_geometry

from lerobot_policy_spatial_forcing.bases import Base
from lerobot_policy_spatial_forcing.options import SfOptions, SpatialForcingOptions, refuse_unknown_flags
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
        if self.sf.adapter is None:
            self.base.adapter()  # before the dataset is opened, too: it takes long, and this may refuse

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


#: Configuration class by type. LeRobot's configurations need none of its extras.
CONFIGS: dict[str, type[SfConfig]] = {}


def register_types() -> None:
    """Give each policy type that LeRobot knows by now its aligned counterpart."""
    known = _known()
    for name, kind in list(known.items()):
        base = Base(name, kind)
        if base.sf_type not in known and not issubclass(kind, SfConfig) and base not in _FAILED:
            _register(base)


_known = PreTrainedConfig.get_known_choices
#: Types whose configuration cannot be extended, of which is said once.
_FAILED: set[Base] = set()


def _register(base: Base) -> None:
    try:
        CONFIGS[base.sf_type] = made = _make(base)
    except TypeError as error:  # a frozen dataclass, or one with a constructor of its own kind
        _FAILED.add(base)
        logger.warning("sfkit: %s is not available, %s cannot be extended: %s", base.sf_type, base.config_class, error)
        return
    globals()[made.__name__] = made
    PreTrainedConfig.register_subclass(base.sf_type)(made)


def _make(base: Base) -> type[SfConfig]:
    name = f"SF{base.stem}Config"
    if name in globals():  # another package has a policy of that name
        name = f"SF{base.stem}_{base.name}Config"
    block = ("sf", SpatialForcingOptions, dataclasses.field(default_factory=SpatialForcingOptions))
    made: Any = dataclasses.make_dataclass(
        name, [block], bases=(SfConfig, base.config_class), namespace={"base": base}, module=__name__
    )
    made.__doc__ = f"``{base.name}``, aligned while it trains."
    made.__init__ = _noting_what_is_given(made.__init__)
    return made  # type: ignore[no-any-return]


def _registering_first(look_up: Any) -> Any:
    """One of LeRobot's ways to look types up, by which those that were registered since then are found as well.

    LeRobot imports plugins in no fixed order, so a policy's package may come after this one, and nothing tells when the
    last has been imported.
    """

    @functools.wraps(look_up.__func__)
    def registering(cls: type[PreTrainedConfig], *args: object) -> Any:
        register_types()
        refuse_unknown_flags()
        return look_up.__func__(cls, *args)

    return classmethod(registering)


for _name in ("get_known_choices", "get_choice_class"):
    setattr(PreTrainedConfig, _name, _registering_first(getattr(PreTrainedConfig, _name)))
register_types()
