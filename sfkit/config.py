"""Configuration: frozen pydantic models without torch, so that they can be read, written and compared anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, SupportsFloat, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from sfkit.errors import ConfigError, did_you_mean, shown

#: Where the student is tapped: after so many decoder blocks, or at :data:`ENCODER`.
StudentLayer: TypeAlias = "int | str"

#: Instead of a number of blocks: what the policy's vision tower gives, before the language model.
ENCODER = "encoder"

#: What backward recomputes instead of keeping it, see ``SpatialForcing.wrap``.
Recompute: TypeAlias = Literal["none", "selective", "full"]

#: What a weight that follows the gradients begins with.
BALANCE = "balance"

#: Whole numbers up to here are the same in JSON, in float64 and in torch.
_LARGEST = 2**53
_DEEPEST, _MOST_VALUES = 64, 2**20

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

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except (ValidationError, UnicodeError) as error:
            raise self._refusal(type(self).__name__, error) from None

    # For a model inside another one pydantic then validates in one go, and names where in the whole the fault is.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def parse(cls, owner: str, values: object) -> Self:
        """Validate ``values``; failures name the owner, the field, the valid fields and what was wrong.

        Raises:
            ConfigError: They are no mapping, or a field is unknown or has a bad value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"Bad options for {owner}: {shown(values)} is no mapping of names to values.", cls._valid()
            )
        return cls._validated(owner, dict(values))

    @classmethod
    def _validated(cls, owner: str, value: object) -> Self:
        try:
            return cls.model_validate(value)
        except (ValidationError, UnicodeError) as error:
            raise cls._refusal(owner, error) from None

    @classmethod
    def _refusal(cls, owner: str, error: ValidationError | UnicodeError) -> ConfigError:
        if isinstance(error, UnicodeError):  # of pydantic, on half of a surrogate pair
            return ConfigError(f"Bad options for {owner}: a text among them is no Unicode.", cls._valid())
        found = error.errors(include_url=False)
        lines = [_in_words(item["loc"], item["msg"], item["input"], cls.model_fields) for item in found]
        return ConfigError(f"Bad options for {owner}: " + " ".join(lines), cls._valid())

    @classmethod
    def _valid(cls) -> str:
        return f"Valid options: {', '.join(cls.model_fields) or 'none'}."

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        if fault := beyond_bounds(dict(self), largest=_LARGEST):
            raise ValueError(fault)
        return self


def beyond_bounds(value: object, *, largest: float = math.inf, depth: int = _DEEPEST) -> str:
    """What in nested lists and mappings is beyond all use, and where; empty if nothing is.

    Args:
        value: JSON, or options.
        largest: The largest whole number.
        depth: How many levels of lists and mappings there may be, the values in the innermost included.
    """
    level: list[tuple[str, object]] = [("", value)]
    for _ in range(depth):
        below: list[tuple[str, object]] = []
        for where, item in level:
            if isinstance(item, int) and abs(item) > largest:
                return f"{where} is a whole number beyond 2^53"
            parts = (
                item if isinstance(item, Mapping) else dict(enumerate(item)) if isinstance(item, (list, tuple)) else {}
            )
            below += [(f"{where}.{key}".lstrip("."), part) for key, part in parts.items()]
            if len(below) > _MOST_VALUES:  # also of few that are referred to over and over, as YAML can
                return f"it holds more than {_MOST_VALUES} values"
        if not below:
            return ""
        level = below
    return f"its lists and mappings are nested more than {depth} deep"


def _in_words(loc: tuple[int | str, ...], message: str, value: object, fields: Iterable[str]) -> str:
    """One error of pydantic, in our words."""
    field = ".".join(map(str, loc))
    if message.startswith("Extra inputs"):
        return f"unknown option {field!r}.{did_you_mean(str(loc[-1]), fields)}"
    message = re.sub(r"^Value error, |, (unable|got a number) .*| after validation.*", "", message)
    for theirs, ours in _WORDS.items():
        message = re.sub(theirs, ours, message)
    got = f", got {shown(value)}" if message.startswith("must be") and "got " not in message else ""
    return f"{field}{' ' if message.startswith(('must ', 'is ')) else ': '}{message}{got}.".removeprefix(": ")


class ComponentSpec(Options):
    """A component by name, with its options: enough to build it again elsewhere."""

    name: str = Field(description="Registered name, for example 'geometry'.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of that component, as JSON values.")

    @classmethod
    def of(cls, value: object) -> ComponentSpec:
        """Read ``"name"``, ``("name", {...})`` or ``{"name": ..., **options}``."""
        return value if isinstance(value, ComponentSpec) else cls._validated("a component", value)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if isinstance(value, ComponentSpec):
            return value
        name, options = value if isinstance(value, tuple) and len(value) == 2 else (value, {})
        own: dict[object, object] = {}
        if isinstance(value, Mapping):
            name, options = value.get("name"), value.get("options", {})
            own = {key: item for key, item in value.items() if key not in ("name", "options")}
        if isinstance(name, str) and isinstance(options, Mapping):
            return {"name": name, "options": {**options, **own}}
        raise ConfigError(
            f"Cannot read a component from {shown(value)}.",
            'Give a name ("geometry"), a name with options (("geometry", {"frame": "world"})) or an instance.',
        )


def one_or_several(value: object) -> tuple[object, ...]:
    """A list of components as it is, and a single one (a name, or a name with options) as a list of one."""
    named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Mapping)
    return (value,) if named or isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)


def read_weight(value: object) -> float | str:
    """A weight: a number, or ``"balance:R"`` with its number in the shortest form.

    Raises:
        ValueError: It is neither, negative or not finite; or the ratio is not above 0.
    """
    if isinstance(value, str) and value.partition(":")[0].strip() == BALANCE:
        return f"{BALANCE}:{balance_ratio(value):g}"
    number = _number(value)
    if not 0 <= number < math.inf:
        raise ValueError(f'must be >= 0, or "balance:0.1", got {shown(value)}')
    return number


def balance_ratio(weight: float | str) -> float | None:
    """The ratio of a weight ``"balance:R"``; None for a number."""
    if not isinstance(weight, str):
        return None
    ratio = _number(weight.partition(":")[2])
    if not 0 < ratio < math.inf:
        raise ValueError(f'{shown(weight)} needs a ratio above 0 after the colon, as in "balance:0.1"')
    return ratio


def _number(value: object) -> float:
    """NaN for what is no number."""
    try:
        return float(value) if isinstance(value, (str, SupportsFloat)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError, RuntimeError):  # a text, an int beyond floats, a tensor of several values
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
