"""Presets: published methods as data, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from sfkit.config import Options


class Preset(Options):
    """A published method: arguments of :meth:`sfkit.SpatialForcing.wrap`, and what is to be known about them.

    An argument that the user gives takes the place of the preset's. ``pairs`` hold no teacher: they are aligned with
    ``teacher``. ``adapter`` holds options for whichever adapter handles the policy.
    """

    name: str = Field(description="What users write.")
    summary: str = Field(description="One line for listings.")
    source: str = Field(description="Paper and repository.")
    arguments: dict[str, Any] = Field(description="Of wrap.")
    by_blocks: dict[int, dict[str, Any]] = Field(
        default_factory=dict, description="Further arguments, by the number of the policy's decoder blocks."
    )
    teacher_hint: str = Field(default="", description="Which teacher to give, where the preset can name none.")
    same_scale: tuple[str, ...] = Field(
        default=(), description="Further teachers whose features have the size of the preset's own teacher's."
    )
    released: tuple[str, ...] = Field(default=(), description="What the released code does, and the preset with it.")
    paper: tuple[str, ...] = Field(default=(), description="Where the paper says something else.")
    missing: tuple[str, ...] = Field(default=(), description="What the released code does and the preset does not.")

    def arguments_for(self, blocks: int) -> Mapping[str, Any]:
        """The arguments for a policy of so many decoder blocks."""
        return {**self.arguments, **self.by_blocks.get(blocks, {})}
