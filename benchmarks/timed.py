"""Training steps of a wrapped policy against those of the same policy unwrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.pairs import Pairs, Ratio, interleave
from benchmarks.policies import Subject
from benchmarks.report import Row
from sfkit import SpatialForcing


def compare_steps(
    subject: Subject,
    teacher: Any,
    *,
    pairs: int,
    warmup: int,
    advance: Callable[[], None],
    disabled: bool = False,
    rounds: int = 1,
) -> Pairs:
    """Interleaved steps of two copies of one policy, of which one is wrapped.

    Two copies and not one object in turns: a module that has ever had a hook is called in another way, and an
    optimizer must be built after the wrap. Two objects lie at different addresses, which alone can make one of them
    faster; with two rounds they change roles half way, and the difference cancels.

    Args:
        subject: The policy.
        teacher: What to wrap it with.
        pairs: Timed pairs in all.
        warmup: Untimed pairs in each round; the first step of a wrapped policy also checks itself.
        advance: Called after each pair.
        disabled: Run the wrapped steps under ``SpatialForcing.disabled``.
        rounds: How often to change roles, plus one.
    """
    copies = [subject.copy(), subject.copy()]
    found = Pairs()
    for index in range(rounds):
        plain, other = copies if index % 2 == 0 else copies[::-1]
        SpatialForcing.wrap(other, teacher, cameras=subject.cameras)
        with SpatialForcing.disabled(other) if disabled else nullcontext():
            interleave(
                training_step(plain, subject.batch), training_step(other, subject.batch),
                pairs=pairs // rounds, warmup=warmup, seed=index, advance=advance, into=found,
            )  # fmt: skip
        _check_that_it_did_what_it_should(other, aligned=not disabled)
        SpatialForcing.unwrap(other)
    return found


def training_step(policy: nn.Module, batch: dict[str, Any]) -> Callable[[], None]:
    """A step of an ordinary loop with an optimizer of its own: forward, backward, update."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        torch.manual_seed(0)  # the same noise and times for both arms
        loss, _ = policy(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _check_that_it_did_what_it_should(policy: Any, *, aligned: bool) -> None:
    ran = policy.spatial_forcing.status().teacher_runs > 0
    if ran != aligned:
        raise RuntimeError(f"the teacher {'ran' if ran else 'did not run'}, so this measured something else")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, as each arm of the demonstration does: threads that wait for each other count as busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def row(what: str, pairs: Pairs, *, target: str = "", judge: Callable[[Ratio], str] | None = None) -> Row:
    """The row of a table for timed pairs."""
    wall, cpu = pairs.ratio("wall"), pairs.ratio("cpu")
    data = {
        "pairs": len(pairs.base),
        "wall": vars(wall),
        "cpu": vars(cpu),
        "median seconds": {arm: pairs.median_seconds(arm, "wall") for arm in ("base", "other")},
        "median CPU seconds": {arm: pairs.median_seconds(arm, "cpu") for arm in ("base", "other")},
    }
    return Row(what, str(wall), target, judge(wall) if judge else "", str(cpu), data)


def at_most(limit: float) -> Callable[[Ratio], str]:
    """Judge whether a ratio is at most ``limit``, with its whole interval."""

    def judge(ratio: Ratio) -> str:
        if ratio.high <= limit:
            return "met"
        return "missed" if ratio.low > limit else "not shown"

    return judge
