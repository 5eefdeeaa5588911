"""What decides the values in a store: the teacher, its layers, the grid, the views and the dtype."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from sfkit.config import Options
from sfkit.errors import SfkitError
from sfkit.registry.registry import split_name
from sfkit.teachers.base import Teacher
from sfkit.utils.places import is_local, read_json, scrubbed, without_places

#: Raised where a folder written before could be misread.
FORMAT = 1
FILE = "manifest.json"

Dtype = Literal["float32", "bfloat16", "int8"]

# Bounds: the file may be a stranger's.
_Text = Annotated[str, Field(min_length=1, max_length=1024)]
_Side = Annotated[int, Field(ge=1, le=2**14)]
_Layer = Annotated[int, Field(ge=1, le=2**14)]
_Width = Annotated[int, Field(ge=1, le=2**20)]


class StoreError(SfkitError):
    """A store is missing, unfinished, damaged, or not the one that a run needs."""


class StoredTeacher(Options):
    """The teacher whose features a store holds."""

    name: _Text = Field(description="What the user wrote, with a digest in the place of a local path.")
    options: dict[str, Any] = Field(description="Its options, without local paths too.")
    identity: dict[_Text, _Text] = Field(description="Name, license and weights: saved with each policy.")
    num_layers: _Layer = Field(description="How many layers it has.")
    default_layer: _Layer = Field(description="The layer that it aligns when the user names none.")

    @classmethod
    def of(cls, teacher: Teacher) -> StoredTeacher:
        """Describe a teacher without a path of this machine."""
        replaced: dict[str, str] = {}
        spec = teacher.spec
        argument = split_name(spec.name)[1]
        if argument is not None and is_local(argument):
            without_places(argument, replaced)
        options = without_places(dict(spec.options), replaced)
        assert isinstance(options, dict)
        return cls(
            name=scrubbed(spec.name, replaced),
            options=options,
            identity={key: scrubbed(value, replaced) for key, value in teacher.identity.items()},
            num_layers=teacher.num_layers,
            default_layer=teacher.default_layer,
        )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not {"name", "license"} <= self.identity.keys():
            raise ValueError("the identity has no name or no license")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return _digest(self.model_dump(mode="json"))


class Manifest(Options):
    """The recipe of a store. It never changes: a dataset that grew changes the index alone."""

    format: int = Field(description="Number of the format.")
    teacher: StoredTeacher = Field(description="Whose features these are.")
    teacher_digest: _Text = Field(description="SHA-256 of what is said of the teacher.")
    widths: dict[_Layer, _Width] = Field(min_length=1, max_length=256, description="Channels of each teacher layer.")
    grid: tuple[_Side, _Side] = Field(description="Rows and columns: the student's.")
    cameras: tuple[_Text, ...] = Field(min_length=1, max_length=256, description="Views, in the policy's order.")
    view: tuple[_Side, _Side] = Field(description="Height and width of a view in pixels.")
    pixels: _Text = Field(description="Who made the views from the dataset's pictures.")
    dtype: Dtype = Field(description="int8 has one scale for each token.")
    versions: dict[_Text, _Text] = Field(max_length=64, description="What computed it; not compared.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.teacher_digest != self.teacher.digest:
            raise ValueError(f"teacher_digest is {self.teacher_digest}, and the teacher's is {self.teacher.digest}")
        if max(self.widths) > self.teacher.num_layers:
            raise ValueError(f"it has layer {max(self.widths)} of {self.teacher.num_layers}")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the values, by name."""
        return self.model_dump(mode="json", exclude={"versions"})

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe; each shard holds it."""
        return _digest(self.recipe)

    @property
    def layers(self) -> tuple[int, ...]:
        """The teacher's layers, in order."""
        return tuple(sorted(self.widths))

    def differences(self, other: Manifest) -> list[str]:
        """Where two recipes differ, with both values: this store's first."""
        mine, theirs = self.recipe, other.recipe
        if mine["teacher"] != theirs["teacher"]:
            for recipe in (mine, theirs):
                recipe.update({f"teacher's {key}": value for key, value in recipe.pop("teacher").items()})
                recipe.pop("teacher_digest")
        return [f"{key} is {mine[key]!r}, not {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]

    def text(self) -> str:
        """The file."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a store, which may be a stranger's.

        Raises:
            StoreError: There is none, it is of another format, or damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise StoreError(f"{folder} is no feature store: it has no {FILE}.", "Build one with `sfkit store build`.")
        try:
            found = read_json(path)
            if not isinstance(found, Mapping):
                raise ValueError(f"it holds a {type(found).__name__}")
            number = found.get("format")
            if number == FORMAT:
                return cls.parse(f"the manifest of {folder}", found)
        except (OSError, ValueError, SfkitError) as error:
            raise StoreError(
                f"{path} could not be read: {error}", "Copy it from where the store was built, or build it again."
            ) from error
        raise StoreError(
            f"{path} is of format {str(number)[:20]}; this sfkit-store reads format {FORMAT}.",
            "Install the version that wrote it, or build the store again.",
        )


def versions() -> dict[str, str]:
    """The versions that a manifest records."""
    return {name: version(name) for name in ("sfkit-store", "spatial-forcing", "torch")}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
