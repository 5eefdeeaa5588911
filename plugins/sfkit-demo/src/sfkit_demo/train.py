"""Train one arm with an ordinary training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sfkit import SpatialForcing
from sfkit.health.report import Health
from sfkit_demo.data import Frames
from sfkit_demo.model import Preprocess
from sfkit_demo.settings import Settings


@dataclass
class Curves:
    """Values during training.

    Attributes:
        action_loss: The policy's own loss on each step's batch.
        cosine: Alignment cosine on each step's batch; empty for a plain arm.
        held_out_steps: Steps with a held-out loss.
        held_out_loss: Held-out loss at these steps.
        seconds: Time of each step, without evaluation.
        health: Measurements of the health monitor; empty for a plain arm.
        random_state: Digest of torch's generator after the last step; equal digests mean equal random numbers.
    """

    action_loss: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    held_out_steps: list[int] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    health: list[Health] = field(default_factory=list)
    random_state: str = ""


def batches(rows: Tensor, settings: Settings) -> Iterator[Tensor]:
    """Yield ``(batch_size,)`` rows per step from ``rows``, ``(n,)``, shuffled in each epoch by the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    pool = torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        while len(pool) < settings.batch_size:
            pool = torch.cat([pool, rows[torch.randperm(len(rows), generator=generator)]])
        yield pool[: settings.batch_size]
        pool = pool[settings.batch_size :]


def learning_rate(step: int, settings: Settings) -> float:
    """Factor of the peak learning rate: a linear warm-up, then a cosine decay to 0.01."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, settings.steps - rise)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    policy: nn.Module,
    preprocess: Preprocess,
    frames: Frames,
    rows: Tensor,
    settings: Settings,
    *,
    held_out_loss: Callable[[], float],
    on_step: Callable[[int, float, float | None], None],
) -> Curves:
    """Train ``policy``, wrapped or not, in place.

    Noise and times come from torch's global generator. Both arms draw the same ones, because a wrap does not use that
    generator.

    Args:
        policy: The policy.
        preprocess: Its preprocessor.
        frames: The dataset.
        rows: Rows for training, ``(n,)``.
        settings: Steps, seed and optimizer.
        held_out_loss: Computes the held-out loss.
        on_step: Called after each step with its number, action loss and cosine.
    """
    torch.manual_seed(settings.seed)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, settings))
    every = max(1, settings.steps // settings.checkpoints)
    handle = SpatialForcing.of(policy)
    curves = Curves()
    policy.train()
    for step, chosen in enumerate(batches(rows, settings), start=1):
        start = time.perf_counter()
        batch = preprocess(frames.batch(chosen, settings.chunk))
        loss, info = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        schedule.step()
        curves.seconds.append(time.perf_counter() - start)
        curves.action_loss.append(float(info.get("action_loss", loss.detach())))
        if handle is not None:
            curves.cosine.append(handle.metrics()["sf_cosine"])
            if (step - 1) % settings.health_every == 0:
                curves.health.append(handle.health())
        on_step(step, curves.action_loss[-1], curves.cosine[-1] if curves.cosine else None)
        if step % every == 0 or step == settings.steps:
            curves.held_out_steps.append(step)
            curves.held_out_loss.append(held_out_loss())
    curves.random_state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:16]
    return curves
