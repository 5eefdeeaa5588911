"""The policies of LeRobot that have an aligned counterpart, by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

PREFIX = "sf_"


@dataclass(frozen=True)
class Base:
    """One of LeRobot's policies.

    Attributes:
        name: LeRobot's type, and the name of sfkit's adapter.
        stem: What LeRobot's class names begin with.
        extra: LeRobot's extra that installs what the policy needs.
    """

    name: str
    stem: str
    extra: str

    @property
    def type(self) -> str:
        """The type of its aligned counterpart on the command line."""
        return f"{PREFIX}{self.name}"

    @property
    def config_class(self) -> Any:
        """LeRobot's configuration class."""
        return getattr(self._module("configuration"), f"{self.stem}Config")

    @property
    def policy_class(self) -> Any:
        """LeRobot's policy class."""
        return getattr(self._module("modeling"), f"{self.stem}Policy")

    @property
    def make_processors(self) -> Any:
        """LeRobot's function that makes the policy's processors."""
        return getattr(self._module("processor"), f"make_{self.name}_pre_post_processors")

    def _module(self, kind: str) -> Any:
        return importlib.import_module(f"lerobot.policies.{self.name}.{kind}_{self.name}")


BASES = (
    Base("smolvla", "SmolVLA", "smolvla"),
    Base("pi0", "PI0", "pi"),
    Base("pi05", "PI05", "pi"),
)
