"""Presets: published methods as data, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from sfkit.config import Options


class Preset(Options):
    """A published method: arguments of :meth:`sfkit.SpatialForcing.wrap`, and what differs from the publication.

    The user's arguments override the preset's. ``pairs`` name no teacher: they are aligned with ``teacher``.
    ``adapter`` holds options for the adapter of the policy, whichever it is.
    """

    name: str = Field(description="The name that users write.")
    source: str = Field(description="Paper and repository.")
    arguments: dict[str, Any] = Field(description="Arguments of wrap.")
    by_blocks: dict[int, dict[str, Any]] = Field(default={}, description="More arguments, by number of decoder blocks.")
    teacher_hint: str = Field(default="", description="Which teacher to give, where the preset names none.")
    same_scale: tuple[str, ...] = Field(default=(), description="Teachers whose features are as large as its own's.")
    released: tuple[str, ...] = Field(default=(), description="What the released code does, and the preset too.")
    paper: tuple[str, ...] = Field(default=(), description="Where the paper says something else.")
    missing: tuple[str, ...] = Field(default=(), description="What the released code does and the preset does not.")

    def arguments_for(self, blocks: int) -> Mapping[str, Any]:
        """The arguments for a policy with this number of decoder blocks."""
        return {**self.arguments, **self.by_blocks.get(blocks, {})}
