"""What alignment costs a policy in openpi's own loop, beside its projector: the teacher's features are free here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from openpi.models.pi0_config import Pi0Config
from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
from tiny_openpi import tiny_observation
from torch import Tensor, nn

from benchmarks.memory import saved_by_forward
from benchmarks.pairs import Pairs, interleave
from benchmarks.report import Report, Row
from benchmarks.timed import at_most, one_thread, row
from sfkit import SpatialForcing
from sfkit.teachers.base import Teacher
from sfkit.views.types import FeatureMap, Views

_LIMIT = 1.05
_COPIES = 3.0
_LAYER = 2
#: Blocks, width and views big enough that arithmetic, and not Python, takes the time.
_WIDE = Pi0Config(width=512, num_layers=4, image_size=224)
_BATCH = 2


class Constant(Teacher):
    """A teacher that costs nothing: features drawn once, as wide as the policy's tokens."""

    name = "constant"
    license = "Apache-2.0"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._maps: dict[tuple[int, ...], FeatureMap] = {}

    @property
    def num_layers(self) -> int:
        return 1

    def dim(self, layer: int) -> int:
        return self.width

    def load(self, device: torch.device) -> None:
        """There is no network."""

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        shape = (*views.images.shape[:2], *grid)
        if shape not in self._maps:
            values = torch.randn(*shape, self.width, generator=torch.Generator().manual_seed(0))
            self._maps[shape] = FeatureMap(values, torch.ones(shape, dtype=torch.bool))
        return [self._maps[shape]] * len(layers)


class Spread(nn.Module):
    """Calls a policy that takes its batch as several arguments with the one that the counting hands it."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Sequence[Any]) -> Any:
        return self.policy(*batch)


def build(config: Pi0Config, *, aligned: bool) -> Any:
    """A policy as openpi's trainer makes it: checkpointed once more around all blocks."""
    torch.manual_seed(0)
    policy: Any = PI0Pytorch(config)
    policy.gradient_checkpointing_enable()
    if aligned:
        SpatialForcing.wrap(policy, Constant(config.width), student_layer=_LAYER)
    return policy.train()


def step_of(policy: nn.Module, batch: Sequence[Any], beside: nn.Module | None = None) -> Callable[[], None]:
    """A step of openpi's trainer; with ``beside``, also one of a projector alone, on as many tokens."""
    parameters = [*policy.parameters(), *(beside.parameters() if beside is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    config: Any = policy.config
    side = config.image_size // config.patch
    tokens = torch.randn(_BATCH, 3, side, side, config.width, requires_grad=True)

    def step() -> None:
        tokens.grad = None
        torch.manual_seed(0)  # the same augmentation, noise and times for both arms
        loss: Tensor = policy(*batch).mean()
        if beside is not None:
            loss = loss + beside(tokens, None).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare_steps(config: Pi0Config, pairs: int, warmup: int, advance: Callable[[], None]) -> Pairs:
    """Wrapped steps over plain ones that run the projector as well."""
    plain, wrapped = build(config, aligned=False), build(config, aligned=True)
    batch = tiny_observation(_BATCH, size=config.image_size)
    projector = deepcopy(wrapped.spatial_forcing.pairs[0].projector)
    found = interleave(
        step_of(plain, batch, projector), step_of(wrapped, batch), pairs=pairs, warmup=warmup, seed=0, advance=advance
    )
    if wrapped.spatial_forcing.status().metrics["sf_valid_token_fraction"] != 1:
        raise RuntimeError("not all tokens were aligned, so this measured something else")
    return found


def copies_kept(config: Pi0Config) -> Row:
    """Bytes saved for backward beyond the plain step, the projector's aside, in copies of the tapped tokens."""
    batch = tiny_observation(_BATCH, size=config.image_size)
    wrapped = build(config, aligned=True)
    wrapped(*batch)  # the first batch also checks
    saved, plain = (saved_by_forward(Spread(each), batch) for each in (wrapped, build(config, aligned=False)))  # type: ignore[arg-type]
    tokens = 4 * _BATCH * 3 * (config.image_size // config.patch) ** 2 * config.width
    beyond = saved.total - plain.total - saved.bytes["projector"]
    return Row(
        f"{config.dtype}: copies of the tapped tokens kept",
        f"{beyond / tokens:.3f}",
        f"at most {_COPIES:g}",
        "met" if beyond <= _COPIES * tokens else "missed",
        data={"ratio": beyond / tokens, "tokens": tokens, **saved.bytes, "plain": plain.total},
    )


def steps(*, quick: bool) -> int:
    return 3 if quick else 44


def run(*, quick: bool, advance: Callable[[], None]) -> Report:
    config = Pi0Config() if quick else _WIDE
    warmup = 1 if quick else 4
    with one_thread():
        found = compare_steps(config, steps(quick=quick) - warmup, warmup, advance)
    rows = [row("training step", found, target=f"at most {_LIMIT:.2f}", judge=at_most(_LIMIT))]
    for dtype in ("float32", "bfloat16"):
        rows.append(copies_kept(Pi0Config(width=config.width, image_size=config.image_size, dtype=dtype)))
    return Report(
        name="openpi",
        title="openpi's training step with a constant teacher, over plain with a projector beside it",
        rows=rows,
        conditions={
            "policy": {
                "stand-in": "pi0", "blocks": config.num_layers, "width": config.width,
                "view": f"{config.image_size} px", "cameras": 3, "batch size": _BATCH,
            },
            "pairs": len(found.base),
            "threads": 1,
        },
    )  # fmt: skip
