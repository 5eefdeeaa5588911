"""Small policies of :mod:`sfkit.testing`, with every kind of pair, weight, schedule and loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recording import Training

from sfkit import GenericAdapter, Span, SpatialForcing
from sfkit.testing.tiny import (
    OutsideAdapter,
    OutsidePolicy,
    PatchTeacher,
    TinyAdapter,
    TinyPolicy,
    loop_loss,
    tiny_batch,
)


class Stand(PatchTeacher):
    """In the place of a teacher with weights: as many layers as VGGT."""

    name = "stand"

    @property
    def num_layers(self) -> int:
        return 24


def random_batch(step: int) -> Any:
    """Another one for each step."""
    return tiny_batch(seed=step)


def tiny(
    teacher: Any = "geometry", *, policy: Any = None, options: Any = None, batch: Any = random_batch, **arguments: Any
) -> Training:
    """A policy that returns its loss; ``policy`` and ``options`` are arguments of it and of its adapter."""
    plain = TinyPolicy(**(policy or {}))
    if not {"pairs", "preset"} & arguments.keys():
        arguments.setdefault("student_layer", 2)
    SpatialForcing.wrap(
        plain, None if "pairs" in arguments else teacher, adapter=TinyAdapter(plain, options), **arguments
    )
    accumulate = arguments.get("grad_accumulation", 1)
    return Training(plain, lambda step: plain(batch(step))[0] / accumulate, accumulate=accumulate)


def outside(attach_loss: str, **arguments: Any) -> Training:
    """A policy whose loop computes the loss."""
    plain, accumulate = OutsidePolicy(), arguments.get("grad_accumulation", 1)
    SpatialForcing.wrap(
        plain, "geometry", student_layer=2, adapter=OutsideAdapter(plain), attach_loss=attach_loss, **arguments
    )

    def loss(step: int) -> Any:
        batch = tiny_batch(seed=step)
        found = loop_loss(plain(batch), batch)
        return (plain.spatial_forcing.add(found) if attach_loss == "manual" else found) / accumulate

    return Training(plain, loss, accumulate=accumulate)


def preset(name: str, blocks: int, options: Any = None) -> Training:
    """A published method, on a policy with as many blocks as its own."""
    return tiny(Stand(), policy={"num_layers": blocks}, options=options, preset=name)


def generic() -> Training:
    """The adapter that is given paths and spans."""
    plain = TinyPolicy()
    adapter = GenericAdapter(
        blocks="blocks", tokens=Span(0, 32), grid=(2, 4, 4), images="images", pixels="[0,1]", loss="0",
        connector="connector", tower=(4, 4, 16), future={1: "next"},
    )  # fmt: skip
    teacher = PatchTeacher()
    pairs = [
        (1, teacher),
        ("encoder", teacher, 2),
        {"student_layer": 2, "teacher": teacher, "teacher_layer": 3, "future": 1},
    ]
    SpatialForcing.wrap(plain, pairs=pairs, adapter=adapter)

    def batch(step: int) -> Any:
        found = tiny_batch(seed=step)
        return found | {"next": found["images"].flip(-1)}

    return Training(plain, lambda step: plain(batch(step))[0])


def masked(step: int) -> Any:
    """A camera is away in one sample, and in every third step in all of them."""
    batch = tiny_batch(seed=step)
    batch["present"] = torch.tensor([[True, step % 3 > 0], [True, False]])
    return batch


def with_future(step: int) -> Any:
    batch = tiny_batch(seed=step)
    return batch | {"future": torch.stack([batch["images"].flip(-1), batch["images"].flip(-2)], 1)}


def three(**more: Any) -> Any:
    teacher = PatchTeacher()
    return tiny(pairs=[(1, teacher, 1, 0.5), (2, teacher, 2), (3, "geometry")], **more)


def special() -> Any:
    """Pairs with parts of their own."""
    teacher = PatchTeacher({"grid": 6})
    return tiny(
        pairs=[
            (1, teacher, 1),
            {"student_layer": 2, "teacher": teacher, "teacher_layer": 2, "objective": "mse", "projector": "linear",
             "transforms": ["layer-norm"]},
            {"student_layer": 2, "teacher": teacher, "teacher_layer": 2, "objective": "attention", "weight": 0.25},
            {"student_layer": "encoder", "teacher": teacher, "future": 2},
        ],
        batch=with_future,
    )  # fmt: skip


def _each(kind: str, argument: str, values: dict[str, Any], teacher: Callable[[], Any] = PatchTeacher) -> Any:
    return {
        f"{kind}/{name}": lambda value=value: tiny(teacher(), **{argument: value}) for name, value in values.items()
    }


CASES: dict[str, Callable[[], Training]] = {
    "tiny/geometry": tiny,
    "tiny/called blocks": lambda: tiny(policy={"fused": False, "tower_per_view": True}),
    "tiny/checkpointing": lambda: tiny(policy={"checkpointing": "non-reentrant"}),
    "tiny/cameras away": lambda: tiny(batch=masked),
    "tiny/joint teacher": lambda: tiny(PatchTeacher({"joint": True, "grid": 5}), batch=masked),
    "tiny/first block": lambda: tiny(student_layer=0),
    "tiny/last block": lambda: tiny(student_layer=3, self_check=False),
    "tiny/encoder": lambda: tiny(student_layer="encoder", policy={"tower_per_view": True}),
    "tiny/token shift": lambda: tiny(PatchTeacher(), options={"token_shift": 1}),
    "tiny/health": lambda: tiny(health={"every": 3}, batch=masked),
    "tiny/generic": generic,
    "pairs/three": three,
    "pairs/mean": lambda: three(pair_reduction="mean"),
    "pairs/nested": lambda: tiny(
        pairs=[(layer, PatchTeacher(), layer) for layer in (1, 2, 3)],
        shared_projector=True,
        projector=("nested", {"hidden": 24}),
    ),
    "pairs/nothing recomputed": lambda: three(recompute="none"),
    "pairs/all recomputed": lambda: three(recompute="full"),
    "pairs/special": special,
    "pairs/health": lambda: three(health={"every": 3}, weight="balance:0.3"),
    "weight/balance": lambda: tiny(weight="balance:0.3"),
    "weight/balance checkpointing": lambda: tiny(weight="balance:0.3", policy={"checkpointing": "non-reentrant"}),
    "weight/balance scheduled": lambda: tiny(weight="balance:0.3", schedule="linear:20"),
    "loss/backward": lambda: outside("backward"),
    "loss/backward accumulated": lambda: outside("backward", grad_accumulation=2),
    "loss/manual": lambda: outside("manual"),
    "loss/manual balanced": lambda: outside("manual", weight="balance:0.3"),
    "loss/backward balanced": lambda: outside("backward", weight="balance:0.3"),
    "loss/returned accumulated": lambda: tiny(grad_accumulation=2, schedule="linear:10"),
    "preset/haste": lambda: preset("haste", 12),
    "preset/irepa": lambda: preset("irepa", 12),
    "preset/irepa-latent": lambda: preset("irepa-latent", 12),
    "preset/repa": lambda: preset("repa", 12),
    "preset/rocket": lambda: preset("rocket", 18),
    "preset/spatial-forcing-openvla": lambda: preset("spatial-forcing-openvla", 32, {"token_shift": 1}),
    "preset/spatial-forcing-pi0": lambda: preset("spatial-forcing-pi0", 18),
    "preset/vega": lambda: preset("vega", 12),
    **_each("schedule", "schedule", {
        "warm-up": "warm-up:10", "linear": ("linear", {"steps": 20, "delay": 5, "to": 0.1}), "cosine": "cosine:20",
        "stop": "stop:15", "every": "every:3", "conflict": ("conflict", {"below": 1.0, "patience": 3, "interval": 2}),
        "product": ["warm-up:4", ("cosine", {"steps": 20, "delay": 5}), "every:2"],
    }),
    **_each("objective", "objective", {
        "mse": "mse", "smooth-l1": "smooth-l1", "info-nce": "info-nce", "relational": "relational",
        "angular-scale": "angular-scale",
        "sum": ("sum", {"terms": [("cosine", 1.0), ("relational", 0.5)]}),
    }),
    **_each("projector", "projector", {
        "linear": "linear", "mlp-silu": "mlp-silu", "conv": "conv", "mlp": ("mlp", {"hidden": 40}),
    }),
    **_each("transform", "transforms", {
        "position-code": ["position-code"], "layer-norm": ["layer-norm"], "spatial-norm": ["spatial-norm"],
        "pca": [("pca", {"dim": 2})], "random-projection": [("random-projection", {"dim": 5})],
        "resample": ["layer-norm", ("resample", {"align_corners": True}), "spatial-norm"],
    }, lambda: PatchTeacher({"grid": 6})),
}  # fmt: skip
