"""Ranking the layers of a policy on a batch of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfkit.errors import AdapterError, ConfigError
from sfkit.factory.components import ComponentLike, build_adapter, build_teacher, inside_peft
from sfkit.policies.base import ForwardCall, PolicyAdapter
from sfkit.saving.trust import public_text
from sfkit.teachers.base import Teacher
from sfkit.training.taps import Taps, site_of
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.cameras import CameraRig
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap, Views
from sfkit_tools.calls import Call, refuse_wrapped, undisturbed
from sfkit_tools.cka import cka_of_products, products
from sfkit_tools.depth_probe import DepthProbe, DepthSamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST = 4
_FOLDS = 4


@dataclass(frozen=True)
class Measure:
    """A figure, and how certain it is.

    Attributes:
        value: On the batch as it is.
        low: 5 % of the resamples are below.
        high: 5 % of the resamples are above.
        best: Share of the resamples in which this layer is the best of all.
        rival: Whether it is as good as the best in 5 % of the resamples or more: the data do not tell them apart.
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
        student_layer: Blocks before it.
        cka: Likeness of its visual tokens to the teacher's features.
        probe: Share of the residual depth's variance that a ridge regression reads from unseen samples; None where the
            views carry no depth.
    """

    student_layer: int
    cka: Measure
    probe: Measure | None


@dataclass(frozen=True)
class Ranking:
    """All layers of a policy.

    Attributes:
        policy: Its class.
        teacher: Name, and layer.
        samples: In the batch.
        tokens: That were compared by CKA.
        blocks: Of the policy's decoder.
        layers: In order; without the last one where no norm is known behind the blocks.
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
        """Layers that the data do not tell from the best, itself included."""
        return tuple(layer for layer, measure in self._measures(by).items() if measure.rival)

    def _measures(self, by: str) -> dict[int, Measure]:
        found = {rank.student_layer: rank.cka if by == "cka" else rank.probe for rank in self.layers}
        return {layer: measure for layer, measure in found.items() if measure is not None}


def rank_layers(
    policy: nn.Module,
    batch: Any,
    teacher: ComponentLike | Teacher,
    *,
    teacher_layer: int | None = None,
    adapter: ComponentLike | PolicyAdapter | None = None,
    cameras: CameraRig | None = None,
    resamples: int = 200,
    tokens: int = 512,
    seed: int = 0,
) -> Ranking:
    """Compare the visual tokens of every layer with a teacher's features, and with depth where the views carry it.

    The policy runs once, in eval mode without gradients, and is left as it was. Certainty comes from a bootstrap over
    the samples of the batch; samples should come from different episodes, or it will look too certain.

    Args:
        policy: Not wrapped.
        batch: At least four samples; as :func:`sfkit_tools.inspect_policy` takes it.
        teacher: Name, name with options, or instance.
        teacher_layer: The teacher's layer; its default by default.
        adapter: Where the policy's class is not recognized.
        cameras: Calibration and poses, as for :meth:`sfkit.SpatialForcing.wrap`.
        resamples: Of the bootstrap.
        tokens: At most so many are compared by CKA, drawn evenly from the samples.
        seed: Of the drawing and the bootstrap.

    Raises:
        ConfigError: Fewer than four samples, or nothing to compare.
        AdapterError: No adapter handles the policy.
        ViewsError: The teacher needs what the batch does not hold.
        WrapError: The policy is wrapped.
    """
    refuse_wrapped(policy)
    bound = build_adapter(policy, adapter)
    if cameras is not None:
        bound.cameras = cameras
    host = TeacherRunner(build_teacher(teacher))
    students, views, call = _capture(policy, bound, batch)
    samples = len(views.images)
    if samples < _FEWEST:
        raise ConfigError(
            f"The batch holds {samples} samples; certainty by resampling needs {_FEWEST} at least.",
            "Give a batch of 16 or more, from different episodes.",
        )
    layer = host.teacher.default_layer if teacher_layer is None else teacher_layer
    grid = next(iter(students.values())).grid
    target = resample(host.features(views, [layer], grid, lambda field: bound.explain_missing(field, call))[0], grid)
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
    name = public_text("teacher", host.teacher.spec, host.teacher.name)  # the ranking may be published
    return Ranking(type(policy).__name__, f"{name}@{layer}", samples, len(owner), bound.num_layers, ranks)


def chart(ranking: Ranking) -> Figure:
    """CKA and, where depth is known, the probe's R² over the layers, with bands from 5 % to 95 % of the resamples.

    The figure belongs to no window: ``chart(ranking).savefig("layers.svg")`` writes it.
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
    # R² has no lower bound: a hopeless layer must not press the others into one line.
    lowest = min(measure.low for measures in series.values() for measure in measures)
    axes.set_ylim(min(0.0, max(lowest, -1.0)), 1.0)
    axes.set_xticks(layers)
    axes.set_xlabel("student layer")
    axes.set_title(f"{ranking.policy}, {ranking.samples} samples", loc="left", fontsize="medium", parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    # A name is no formula: a dollar sign in it would be an error of matplotlib's.
    for text in axes.legend(frameon=False, loc="lower left").get_texts():
        text.set_parse_math(False)
    return figure


def uniform(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at equal distances between the embeddings and the last block, both left out.

    Raises:
        ConfigError: There are not so many.
    """
    _check_count(num_layers, count, num_layers - 1)
    return tuple(round(index * num_layers / (count + 1)) for index in range(1, count + 1))


def end_anchored(num_layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers at a whole stride, counted back from the last block, which is among them.

    Raises:
        ConfigError: There are not so many.
    """
    _check_count(num_layers, count, num_layers)
    stride = num_layers // count
    return tuple(num_layers - stride * index for index in reversed(range(count)))


def _check_count(num_layers: int, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ConfigError(f"{count} layers cannot be spread over {num_layers} blocks.", f"Choose 1 to {most}.")


def _capture(policy: nn.Module, adapter: PolicyAdapter, batch: Any) -> tuple[dict[int, FeatureMap], Views, ForwardCall]:
    """The visual tokens of every layer that can be tapped, from one forward."""
    inner = inside_peft(policy)
    call = Call.of(inner, batch)
    points = list(range(adapter.num_layers + 1))
    try:
        adapter.tap(adapter.num_layers)
    except AdapterError:  # a policy of which no final norm is known
        points.pop()
    with undisturbed(policy), torch.no_grad(), ExitStack() as stack:
        policy.eval()
        sites = {layer: site_of(layer) for layer in points}
        taps = Taps(adapter, list(sites.values()))
        stack.callback(taps.remove)
        output, captured, inputs = taps.run(call.run, (policy,), {})
        seen = ForwardCall(call.arguments(inner), output, inputs, tuple(points))
        views = adapter.views(seen)
        tokens = {layer: site.tokens(adapter, captured[site], views) for layer, site in sites.items()}
        return tokens, views, seen


def _choose(
    students: Mapping[int, FeatureMap], target: FeatureMap, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``(n,)`` places among the flat tokens that are valid everywhere, and the sample that each belongs to."""
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
    return features.values.flatten(0, 3)[places].cpu()


def _probe(student: FeatureMap, views: Views, counts: Tensor) -> list[float]:
    """R² of the depth probe on held-out samples: on the batch as it is, and in each resample."""
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
    fields = ("tokens", "depth", "mask", "groups")
    return DepthSamples(**{name: getattr(samples, name)[rows] for name in fields}, names=samples.names)


def _measures(values: Sequence[Sequence[float]]) -> list[Measure]:
    """From ``[layer][the batch, then each resample]``."""
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
