"""Configuration: frozen pydantic models without torch, so that they can be read, written and compared anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, SupportsFloat, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from sfkit.errors import ConfigError, did_you_mean

#: Where the student is tapped: after so many decoder blocks, or at :data:`ENCODER`.
StudentLayer: TypeAlias = "int | str"

#: Instead of a number of blocks: what the policy's vision tower gives, before the language model.
ENCODER = "encoder"

#: What backward recomputes instead of keeping it, see ``SpatialForcing.wrap``.
Recompute: TypeAlias = Literal["none", "selective", "full"]

#: What a weight that follows the gradients begins with.
BALANCE = "balance"

#: Words of pydantic's errors, and ours.
_WORDS = {
    "Input should be": "must be", r"^\w+ should have": "must have", "Field required": "is missing",
    "greater than or equal to": ">=", "greater than": ">", "less than or equal to": "<=", "less than": "<",
    "a valid integer": "a whole number", "a valid ": "a ",
}  # fmt: skip

#: How the alignment loss reaches what the training loop differentiates: :class:`sfkit.training.loss_path.LossPaths`.
AttachLoss: TypeAlias = Literal["auto", "return", "backward", "manual"]


class Options(BaseModel):
    """Base of every options class: frozen, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, owner: str, values: Mapping[str, object]) -> Self:
        """Validate ``values``; failures name the owner, the field, the valid fields and what was wrong.

        Raises:
            ConfigError: A field is unknown or has a bad value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            lines = [_in_words(item["loc"], item["msg"], item["input"], cls.model_fields) for item in error.errors()]
            valid = ", ".join(cls.model_fields) or "none"
            raise ConfigError(f"Bad options for {owner}: " + " ".join(lines), f"Valid options: {valid}.") from None


def _in_words(loc: tuple[int | str, ...], message: str, value: object, fields: Iterable[str]) -> str:
    """One error of pydantic, in our words."""
    field = ".".join(map(str, loc))
    if message.startswith("Extra inputs"):
        return f"unknown option {field!r}.{did_you_mean(str(loc[-1]), fields)}"
    message = re.sub(r"^Value error, |, (unable|got a number) .*| after validation.*", "", message)
    for theirs, ours in _WORDS.items():
        message = re.sub(theirs, ours, message)
    got = f", got {value!r}" if message.startswith("must be") and "got " not in message else ""
    return f"{field}{' ' if message.startswith(('must ', 'is ')) else ': '}{message}{got}.".removeprefix(": ")


class ComponentSpec(Options):
    """A component by name, with its options: enough to build it again elsewhere."""

    name: str = Field(description="Registered name, for example 'geometry'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of that component, as JSON values.")

    @classmethod
    def of(cls, value: object) -> ComponentSpec:
        """Read ``"name"``, ``("name", {...})`` or ``{"name": ..., **options}``."""
        return value if isinstance(value, ComponentSpec) else cls.model_validate(value)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, tuple) and len(value) == 2:
            return {"name": value[0], "options": dict(value[1])}
        if isinstance(value, Mapping) and "name" in value:
            own = {key: item for key, item in value.items() if key not in ("name", "options")}
            return {"name": value["name"], "options": {**value.get("options", {}), **own}}
        if isinstance(value, ComponentSpec):
            return value
        raise ConfigError(
            f"Cannot read a component from {value!r}.",
            'Give a name ("geometry"), a name with options (("geometry", {"frame": "world"})) or an instance.',
        )


def one_or_several(value: object) -> tuple[object, ...]:
    """A list of components as it is, and a single one (a name, or a name with options) as a list of one."""
    named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping)
    if named or isinstance(value, (str, Mapping, BaseModel)) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


def read_weight(value: object) -> float | str:
    """A weight: a number, or ``"balance:R"`` with its number in the shortest form.

    Raises:
        ValueError: It is neither, negative or not finite; or the ratio is not above 0.
    """
    if isinstance(value, str) and value.partition(":")[0].strip() == BALANCE:
        return f"{BALANCE}:{balance_ratio(value):g}"
    number = _number(value)
    if not 0 <= number < math.inf:
        raise ValueError(f'must be >= 0, or "balance:0.1", got {value!r}')
    return number


def balance_ratio(weight: float | str) -> float | None:
    """The ratio of a weight ``"balance:R"``; None for a number."""
    if not isinstance(weight, str):
        return None
    ratio = _number(weight.partition(":")[2])
    if not 0 < ratio < math.inf:
        raise ValueError(f'{weight!r} needs a ratio above 0 after the colon, as in "balance:0.1"')
    return ratio


def _number(value: object) -> float:
    """NaN for what is no number."""
    try:
        return float(value) if isinstance(value, (str, SupportsFloat)) and not isinstance(value, bool) else math.nan
    except ValueError:
        return math.nan


class PairConfig(Options):
    """One alignment: a student layer, and the teacher features that it is aligned with."""

    student_layer: int | str = Field(description="Residual stream after this many blocks, or 'encoder'.")
    teacher: ComponentSpec = Field(description="The teacher of this pair.")
    teacher_layer: int = Field(description="The teacher's layer, 1 to its number of layers.")
    weight: float = Field(default=1.0, ge=0, description="Weight of this pair within the alignment loss.")
    future: int = Field(default=0, ge=0, description="The teacher sees the frame so many steps ahead.")
    objective: ComponentSpec | None = Field(default=None, description="Of this pair alone, instead of the run's.")
    projector: ComponentSpec | None = Field(default=None, description="Of this pair alone, instead of the run's.")
    transforms: tuple[ComponentSpec, ...] | None = Field(
        default=None, description="Of this pair alone, instead of the run's."
    )

    @field_validator("student_layer")
    @classmethod
    def _known_layer(cls, value: int | str) -> int | str:
        if isinstance(value, str) and value != ENCODER:
            raise ValueError(f"a student layer is a number of blocks, or {ENCODER!r}")
        if not isinstance(value, str) and value < 0:
            raise ValueError("student layers count from 0, the embeddings; none is counted from the end")
        return value


class HealthOptions(Options):
    """What the health monitor measures, how often, and when it warns."""

    every: int = Field(default=50, ge=0, description="Measure at one training step of so many; 0: never.")
    patience: int = Field(default=100, ge=0, description="Steps that a finding must last before it is worth a warning.")
    max_grad_ratio: float = Field(default=1.0, gt=0, description="Warn when alignment / action gradient is above.")
    conflict: float = Field(default=-0.2, ge=-1, le=0, description="Warn when the cosine of the two is below.")
    max_cosine: float = Field(default=0.99, gt=0, description="Warn when all pairs' cosine to the target is above.")
    collapse: float = Field(default=0.1, ge=0, description="Warn when projected over target rank or spread is below.")
    spatial_shift_ratio: float = Field(default=0.9, ge=0, le=1, description="Warn when shifted / own error is below.")


def _read_health(given: object) -> object:
    """Read by itself, so that an error names the options of health alone."""
    return HealthOptions.parse("health", given) if isinstance(given, Mapping) else given


class SpatialForcingConfig(Options):
    """Everything that defines an aligned training run, as it is saved beside a checkpoint."""

    adapter: ComponentSpec = Field(description="The policy adapter.")
    pairs: tuple[PairConfig, ...] = Field(min_length=1, description="What is aligned with what.")
    objective: ComponentSpec = Field(default=ComponentSpec(name="cosine"), description="The alignment objective.")
    projector: ComponentSpec = Field(default=ComponentSpec(name="mlp"), description="Student width to teacher width.")
    shared_projector: bool = Field(default=False, description="One for all pairs; 'nested' grows with the layer.")
    transforms: tuple[ComponentSpec, ...] = Field(default=(), description="Of the teacher's features, in order.")
    pair_reduction: Literal["sum", "mean"] = Field(default="sum", description="Of the pairs' weighted losses.")
    weight: Annotated[float | str, BeforeValidator(read_weight)] = Field(
        default=0.5, description="Weight of the alignment loss; balance:0.1 keeps the ratio of gradients."
    )
    schedule: Annotated[tuple[ComponentSpec, ...], BeforeValidator(one_or_several)] = Field(
        default=(), description="Factors on the weight, step by step: cosine:10000, or several that multiply."
    )
    recompute: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="What backward recomputes; auto: selective for several pairs, none for one.",
    )
    attach_loss: AttachLoss = Field(
        default="auto",
        description="Where the loop gets the alignment loss: in the returned loss, in backward, by add(loss).",
    )
    grad_accumulation: int | None = Field(default=None, ge=1, description="Batches for each optimizer step, if known.")
    seed: int = Field(default=0, ge=0, description="Seed of the projector's own random generator.")
    health: Annotated[HealthOptions, BeforeValidator(_read_health)] = Field(
        default=HealthOptions(), description="How often to measure, and when to warn."
    )
    self_check: bool = Field(default=True, description="Check on the first batches that alignment really trains.")

    @model_validator(mode="after")
    def _aligns_something(self) -> Self:
        seen = [(one.student_layer, one.teacher, one.teacher_layer, one.future, one.objective) for one in self.pairs]
        if self.weight == 0 and any(item.name != "constant" for item in self.schedule):
            raise ValueError("weight is 0, so a schedule has nothing to scale; give a weight, or no schedule")
        if any(seen.count(item) > 1 for item in seen):
            raise ValueError(
                "the same (student_layer, teacher, teacher_layer) is listed twice; give it once with the summed weight"
            )
        if not any(pair.weight for pair in self.pairs):
            raise ValueError("the weights of all pairs are 0: nothing would be aligned")
        return self
