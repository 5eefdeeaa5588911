"""Evaluate a policy on held-out episodes; all arms use this code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sfkit_tools import DepthProbe, DepthSamples, DepthScore, RidgeProbe, capture_tokens, probe_error, token_depth
from sfkit_tools.depth_probe import position_mean
from torch import Tensor, nn

from sfkit.factory.components import build_adapter, build_teacher
from sfkit.policies.base import ForwardCall
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.utils.runtime import own_rng
from sfkit.views.resample import resample
from sfkit.views.types import FeatureMap, Views
from sfkit_demo.data import Batch, Frames, Split, thinned
from sfkit_demo.model import Preprocess
from sfkit_demo.settings import Settings

_BATCH = 64
#: One seed for noise and times of the held-out loss: it is comparable between arms, seeds and steps.
_NOISE_SEED = 1234
_CM = 100.0
#: Number of held-out frames for the loss during training.
_GLANCE = 128


@dataclass(frozen=True)
class Metrics:
    """Metrics on held-out episodes.

    Attributes:
        flow_loss: The policy's own action loss; NaN for the mean predictor.
        object_cm: Mean error of the object's position, by a linear probe of the tapped tokens.
        goal_cm: Mean error of the goal's position, by a linear probe of the tapped tokens.
        depth_r2: R² of residual depth (depth minus the mean of the patch position) by camera.
        depth_rmse_cm: Root mean squared error of residual depth by camera.
        cosine: Cosine of the teacher's features and a linear prediction of them from the tapped tokens, with the means
            of each patch position known. Unlike the projector's cosine, it is defined for every arm.
    """

    flow_loss: float
    object_cm: float
    goal_cm: float
    depth_r2: dict[str, float]
    depth_rmse_cm: dict[str, float]
    cosine: float


@dataclass(frozen=True)
class Truth:
    """Targets of the probes for some frames; they do not depend on the policy.

    Attributes:
        rows: ``(n,)`` rows of the dataset.
        target: ``(n, v, gh, gw, d)`` features of the teacher.
        depth: ``(n, v, gh, gw)`` meters.
        known: ``(n, v, gh, gw)`` bool: where depth is valid.
        names: Name of each view.
    """

    rows: Tensor
    target: FeatureMap
    depth: Tensor
    known: Tensor
    names: tuple[str, ...]


class Evaluator:
    """Evaluates policies of one architecture on one split, without draws from torch's global generator.

    Args:
        policy: A policy of that architecture, for its adapter.
        preprocess: Its preprocessor.
        frames: The dataset.
        split: Training part and held-out part.
        settings: Settings of the run.
    """

    def __init__(
        self, policy: nn.Module, preprocess: Preprocess, frames: Frames, split: Split, settings: Settings
    ) -> None:
        self.preprocess, self.frames, self.settings = preprocess, frames, settings
        train, held_out = (thinned(frames, rows, settings.stride) for rows in (split.train, split.held_out))
        self.glance_rows = held_out[torch.linspace(0, len(held_out) - 1, min(_GLANCE, len(held_out))).long()]
        tokens, _ = self._capture(policy, train[:1])
        runner = TeacherRunner(build_teacher(settings.teacher))
        if hasattr(runner.teacher, "fit"):
            runner.teacher.fit((views, tokens.grid) for views in self._views(policy, train))
        self.train = self._truth(policy, runner, train, tokens.grid)
        self.held_out = self._truth(policy, runner, held_out, tokens.grid)

    def loss(self, policy: nn.Module, rows: Tensor | None = None, draws: int = 1) -> float:
        """Mean action loss over rows ``(n,)`` in eval mode, with the same noise and times in each call."""
        rows = self.glance_rows if rows is None else rows
        training = policy.training
        policy.eval()
        losses = []
        with own_rng(seed=_NOISE_SEED), torch.no_grad():
            for _ in range(draws):
                losses += [policy(batch, reduction="none")[0] for batch in self._batches(rows)]
        policy.train(training)
        return float(torch.cat(losses).mean())

    def measure(self, policy: nn.Module) -> tuple[Metrics, Metrics]:
        """Metrics of the policy and of the mean predictor; the latter are the same for every policy."""
        train, held_out = (self.tokens(policy, truth.rows) for truth in (self.train, self.held_out))
        positions = {name: self._position(train, held_out, name) for name in ("object", "goal")}
        depth = self._depth(train, held_out)
        cosine, mean_cosine = self._cosine(train, held_out)
        loss = self.loss(policy, self.held_out.rows, self.settings.noise_draws)
        measured = Metrics(
            flow_loss=loss,
            object_cm=positions["object"][0],
            goal_cm=positions["goal"][0],
            depth_r2={name: score.r2 for name, score in depth.items()},
            depth_rmse_cm={name: score.rmse_cm for name, score in depth.items()},
            cosine=cosine,
        )
        mean = Metrics(
            flow_loss=float("nan"),
            object_cm=positions["object"][1],
            goal_cm=positions["goal"][1],
            depth_r2=dict.fromkeys(depth, 0.0),
            depth_rmse_cm={name: score.mean_rmse_cm for name, score in depth.items()},
            cosine=mean_cosine,
        )
        return measured, mean

    # ---------------------------------------------------------------- probes

    def _position(self, train: FeatureMap, held_out: FeatureMap, name: str) -> tuple[float, float]:
        """Error in centimeters of a position predicted from all tokens of a frame, and the mean predictor's."""
        labels, groups = self.frames.labels[name], self.frames.episode
        probe = RidgeProbe.fit(_flat(train), labels[self.train.rows], groups[self.train.rows])
        score = probe_error(probe, _flat(held_out), labels[self.held_out.rows])
        return score.error * _CM, score.mean_error * _CM

    def _depth(self, train: FeatureMap, held_out: FeatureMap) -> dict[str, DepthScore]:
        probe = DepthProbe.fit(self._samples(train, self.train))
        _, by_view = probe.score(self._samples(held_out, self.held_out))
        return {_short(name): score for name, score in by_view.items()}

    def _samples(self, tokens: FeatureMap, truth: Truth) -> DepthSamples:
        groups = self.frames.episode[truth.rows]
        return DepthSamples(tokens.values, truth.depth, tokens.mask & truth.known, groups, truth.names)

    def _cosine(self, train: FeatureMap, held_out: FeatureMap) -> tuple[float, float]:
        """Cosine of the teacher's features with a linear prediction, and with the mean of each patch position.

        Both know the means of each position, as in the depth probe.
        """
        usable, unseen = train.mask & self.train.target.mask, held_out.mask & self.held_out.target.mask
        token_mean = position_mean(train.values, usable)
        goal_mean = position_mean(self.train.target.values, usable)
        groups = self.frames.episode[self.train.rows][:, None, None, None].expand_as(usable)[usable]
        probe = RidgeProbe.fit(
            (train.values - token_mean)[usable], (self.train.target.values - goal_mean)[usable], groups
        )
        goal = self.held_out.target.values[unseen]
        constant = goal_mean.expand_as(self.held_out.target.values)[unseen]
        read = constant + probe.predict((held_out.values - token_mean)[unseen]).float()
        return _mean_cosine(read, goal), _mean_cosine(constant, goal)

    # ---------------------------------------------------------------- frames

    def _batches(self, rows: Tensor) -> Iterator[Batch]:
        """Preprocessed batches of rows ``(n,)``, in order."""
        for part in torch.split(rows, _BATCH):
            yield self.preprocess(self.frames.batch(part, self.settings.chunk))

    def _capture(self, policy: nn.Module, rows: Tensor) -> tuple[FeatureMap, Views]:
        """Visual tokens of rows ``(n,)``, ``(n, v, gh, gw, d)``, and their views."""
        batch = self.preprocess(self.frames.batch(rows, self.settings.chunk))
        return capture_tokens(policy, batch, self.settings.student_layer, cameras=self.frames.cameras)

    def tokens(self, policy: nn.Module, rows: Tensor) -> FeatureMap:
        """Visual tokens of rows ``(n,)`` at the tapped layer, ``(n, v, gh, gw, d)``."""
        return _cat([self._capture(policy, part)[0] for part in torch.split(rows, _BATCH)])

    def _views(self, policy: nn.Module, rows: Tensor) -> Iterator[Views]:
        """Views of rows ``(n,)``, without running the policy."""
        adapter = build_adapter(policy, None)
        adapter.cameras = self.frames.cameras
        for batch in self._batches(rows):
            yield adapter.views(ForwardCall({"batch": batch}, None))

    def _truth(self, policy: nn.Module, runner: TeacherRunner, rows: Tensor, grid: tuple[int, int]) -> Truth:
        """Targets of rows ``(n,)``."""
        layer = runner.teacher.default_layer
        targets, depths = [], []
        names: tuple[str, ...] = ()
        for views in self._views(policy, rows):
            targets.append(resample(runner.features(views, [layer], grid)[0], grid))
            depths.append(token_depth(views, grid))
            names = views.names
        depth, known = (torch.cat(column) for column in zip(*depths, strict=True))
        return Truth(rows, _cat(targets), depth, known, names)


def _cat(maps: list[FeatureMap]) -> FeatureMap:
    # clone: a teacher's features are tensors of inference mode, which the probes cannot use.
    return FeatureMap(torch.cat([m.values for m in maps]).clone(), torch.cat([m.mask for m in maps]).clone())


def _flat(tokens: FeatureMap) -> Tensor:
    """``(n, v * gh * gw * d)``: all tokens of a frame concatenated, with 0 for masked ones."""
    return tokens.sanitized().values.flatten(1)


def _mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine of the rows of ``(n, d)`` and ``(n, d)``."""
    return float(F.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-6).mean())


def _short(key: str) -> str:
    """``observation.images.wrist`` to ``wrist``."""
    return key.rsplit(".", 1)[-1]
