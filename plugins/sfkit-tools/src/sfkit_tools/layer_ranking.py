"""Rank the layers of a policy on a batch of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfkit.errors import AdapterError, ConfigError
from sfkit.factory.components import ComponentLike, build_adapter, inside_peft
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.saving.trust import public_text
from sfkit.teachers.base import Teacher
from sfkit.views.cameras import CameraRig
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap, Views
from sfkit_tools.calls import Call, refuse_wrapped, undisturbed
from sfkit_tools.capture import run_with_taps, teacher_features
from sfkit_tools.cka import cka_of_products, products
from sfkit_tools.depth_probe import DepthProbe, DepthSamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST = 4
_FOLDS = 4


@dataclass(frozen=True)
class Measure:
    """A value with its uncertainty from resamples of the batch.

    Attributes:
        value: Value on the batch itself.
        low: 5th percentile of the resamples.
        high: 95th percentile of the resamples.
        best: Share of the resamples in which this layer is the best of all.
        rival: Whether it is as good as the best layer in at least 5 % of the resamples: the data do not separate them.
    """

    value: float
    low: float
    high: float
    best: float
    rival: bool


@dataclass(frozen=True)
class LayerRank:
    """One layer.

    Attributes:
        student_layer: Number of blocks before it.
        cka: Similarity of its visual tokens and the teacher's features.
        probe: R² of residual depth on unseen samples, by a ridge regression; None where the views have no depth.
    """

    student_layer: int
    cka: Measure
    probe: Measure | None


@dataclass(frozen=True)
class Ranking:
    """All layers of a policy.

    Attributes:
        policy: Class name of the policy.
        teacher: Name and layer of the teacher.
        samples: Number of samples in the batch.
        tokens: Number of tokens in CKA.
        blocks: Number of blocks of the policy's decoder.
        layers: Layers in order; without the last one where the norm after the blocks is unknown.
    """

    policy: str
    teacher: str
    samples: int
    tokens: int
    blocks: int
    layers: tuple[LayerRank, ...]

    def best(self, by: str = "cka") -> int:
        """The layer with the highest value."""
        return max(self._measures(by).items(), key=lambda item: item[1].value)[0]

    def rivals(self, by: str = "cka") -> tuple[int, ...]:
        """Layers that the data do not separate from the best, including the best."""
        return tuple(layer for layer, measure in self._measures(by).items() if measure.rival)

    def _measures(self, by: str) -> dict[int, Measure]:
        found = {rank.student_layer: rank.cka if by == "cka" else rank.probe for rank in self.layers}
        return {layer: measure for layer, measure in found.items() if measure is not None}


def rank_layers(
    policy: nn.Module,
    batch: object,
    teacher: ComponentLike | Teacher,
    *,
    teacher_layer: int | None = None,
    adapter: ComponentLike | PolicyAdapter | None = None,
    cameras: CameraRig | None = None,
    resamples: int = 200,
    tokens: int = 512,
    seed: int = 0,
) -> Ranking:
    """Compare the visual tokens of every layer with a teacher's features, and with depth where the views have it.

    The policy runs once, in eval mode without gradients, and is not changed. Intervals come from a bootstrap over the
    samples of the batch. Samples of one episode are correlated, which makes the intervals too small.

    Args:
        policy: The policy, not wrapped.
        batch: At least four samples, in a form of :func:`sfkit_tools.inspect_policy`.
        teacher: Name, name with options, or instance.
        teacher_layer: The teacher's layer; by default ``default_layer`` of the teacher.
        adapter: The adapter, for a policy whose class is not registered.
        cameras: Calibration and poses, as for :meth:`sfkit.SpatialForcing.wrap`.
        resamples: Number of resamples of the bootstrap.
        tokens: Largest number of tokens in CKA; a random subset of all samples' tokens.
        seed: Seed of the subset and of the bootstrap.

    Raises:
        ConfigError: There are fewer than four samples, or no valid tokens.
        AdapterError: No adapter handles the policy.
        ViewsError: The batch lacks a field that the teacher needs.
        WrapError: The policy is wrapped.
    """
    refuse_wrapped(policy)
    bound = build_adapter(policy, adapter)
    if cameras is not None:
        bound.cameras = cameras
    students, views, call = _capture(policy, bound, batch)
    samples = len(views.images)
    if samples < _FEWEST:
        raise ConfigError(
            f"The batch holds {samples} samples; resampling needs at least {_FEWEST}.",
            "Give a batch of 16 or more, from different episodes.",
        )
    grid = next(iter(students.values())).grid
    built, layer, features = teacher_features(
        teacher, views, teacher_layer, grid, lambda field: bound.explain_missing(field, call)
    )
    target = resample(features, grid)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(samples, (resamples, samples), generator=generator)
    counts = torch.stack([torch.bincount(draw, minlength=samples) for draw in draws]).double()
    chosen, owner = _choose(students, target, tokens, generator)
    weights = [torch.ones(samples, dtype=torch.float64), *counts]
    theirs, apart = products(_flat(target, chosen)), owner[:, None] != owner[None, :]
    ours = [products(_flat(student, chosen)) for student in students.values()]
    drawn = [cka_of_products(ours, theirs, weight[owner], apart) for weight in weights]
    alike = list(zip(*drawn, strict=True))
    probed = None if views.depth is None else [_probe(student, views, counts) for student in students.values()]
    measures = _measures(alike)
    probes = [None] * len(measures) if probed is None else _measures(probed)
    ranks = tuple(LayerRank(*each) for each in zip(students, measures, probes, strict=True))
    # Rankings may be published, so the name must not show a path of this machine.
    name = public_text("teacher", built.spec, built.name)
    return Ranking(type(policy).__name__, f"{name}@{layer}", samples, len(owner), bound.num_layers, ranks)


def chart(ranking: Ranking) -> Figure:
    """Plot CKA and, where depth is known, the probe's R² over the layers, with bands of 5 % to 95 % of the resamples.

    The figure has no window: ``chart(ranking).savefig("layers.svg")`` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    layers = [rank.student_layer for rank in ranking.layers]
    series = {f"CKA to {ranking.teacher}": [rank.cka for rank in ranking.layers]}
    probes = [rank.probe for rank in ranking.layers if rank.probe is not None]
    if probes:
        series["depth probe, R²"] = probes
    for name, measures in series.items():
        (line,) = axes.plot(layers, [measure.value for measure in measures], label=name)
        low, high = [measure.low for measure in measures], [measure.high for measure in measures]
        axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    # R² has no lower bound: one bad layer must not compress the range of the others.
    lowest = min(measure.low for measures in series.values() for measure in measures)
    axes.set_ylim(min(0.0, max(lowest, -1.0)), 1.0)
    axes.set_xticks(layers)
    axes.set_xlabel("student layer")
    axes.set_title(f"{ranking.policy}, {ranking.samples} samples", loc="left", fontsize="medium", parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    # matplotlib parses text between dollar signs as a formula; names may hold dollar signs.
    for text in axes.legend(frameon=False, loc="lower left").get_texts():
        text.set_parse_math(False)
    return figure


def uniform(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at equal distances between the embeddings and the last block, without these two.

    Raises:
        ConfigError: There are fewer layers.
    """
    _check_count(num_layers, count, num_layers - 1)
    return tuple(round(index * num_layers / (count + 1)) for index in range(1, count + 1))


def end_anchored(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at an integer stride that ends at the last block.

    Raises:
        ConfigError: There are fewer layers.
    """
    _check_count(num_layers, count, num_layers)
    stride = num_layers // count
    return tuple(num_layers - stride * index for index in reversed(range(count)))


def _check_count(num_layers: int, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ConfigError(f"{count} layers cannot be spread over {num_layers} blocks.", f"Choose 1 to {most}.")


def _capture(
    policy: nn.Module, adapter: PolicyAdapter, batch: object
) -> tuple[dict[int, FeatureMap], Views, ForwardCall]:
    """The visual tokens of every layer with a tap, from one forward."""
    inner = inside_peft(policy)
    call = Call.of(inner, batch)
    layers = list(range(adapter.num_layers + 1))
    try:
        adapter.tap(adapter.num_layers)
    except AdapterError:  # the norm after the last block is unknown
        layers.pop()
    with undisturbed(policy), torch.no_grad():
        policy.eval()
        return run_with_taps(adapter, layers, lambda: call.run(policy), lambda: call.arguments(inner))


def _choose(
    students: Mapping[int, FeatureMap], target: FeatureMap, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``(n,)`` indices of flat tokens that are valid on both sides and in all layers, and the sample of each."""
    mask = target.mask.clone()
    for student in students.values():
        mask &= student.mask
    rows = mask.flatten(1)
    owners = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
    places = rows.flatten().nonzero().squeeze(1)
    if len(places) < _FEWEST:
        raise ConfigError("Hardly any token is valid on both sides.", "Look at the views and at the teacher's masks.")
    kept = places[torch.randperm(len(places), generator=generator)[:most].sort().values.to(places.device)]
    return kept, owners.flatten()[kept].cpu()


def _flat(features: FeatureMap, places: Tensor) -> Tensor:
    """The tokens ``(n, d)`` at flat indices ``(n,)``, on the CPU."""
    return features.values.flatten(0, 3)[places].cpu()


def _probe(student: FeatureMap, views: Views, counts: Tensor) -> list[float]:
    """R² of the depth probe on held-out samples: for the batch, then for each row of ``counts``, ``(resamples, b)``."""
    samples = DepthSamples.of(student, views, torch.arange(len(views.images)))
    count = len(samples.tokens)
    errors, baselines = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for fold in range(min(_FOLDS, count)):
        held = torch.arange(count) % _FOLDS == fold
        probe = DepthProbe.fit(_select(samples, ~held))
        for index in held.nonzero().flatten().tolist():
            one = _select(samples, torch.arange(count) == index)
            if bool(one.mask.any()):
                score, _ = probe.score(one)
                errors[index] = score.rmse_cm**2 * score.samples
                baselines[index] = score.mean_rmse_cm**2 * score.samples
    weights = torch.cat([torch.ones(1, count, dtype=torch.float64), counts])
    return (1 - (weights @ errors) / (weights @ baselines)).tolist()


def _select(samples: DepthSamples, rows: Tensor) -> DepthSamples:
    """The samples of a mask ``(n,)`` bool."""
    fields = ("tokens", "depth", "mask", "groups")
    return DepthSamples(**{name: getattr(samples, name)[rows] for name in fields}, names=samples.names)


def _measures(values: Sequence[Sequence[float]]) -> list[Measure]:
    """Measures of each layer, from ``values[layer]``: the value on the batch, then those of the resamples."""
    table = torch.tensor(values, dtype=torch.float64)
    found, drawn = table[:, 0], table[:, 1:].nan_to_num(-1.0)
    winner = drawn.argmax(0)
    best = int(found.nan_to_num(-1.0).argmax())
    low, high = drawn.quantile(0.05, dim=1), drawn.quantile(0.95, dim=1)
    as_good = (drawn >= drawn[best]).double().mean(1)
    return [
        Measure(
            float(found[i]),
            float(low[i]),
            float(high[i]),
            float((winner == i).double().mean()),
            float(as_good[i]) >= 0.05,
        )
        for i in range(len(values))
    ]
