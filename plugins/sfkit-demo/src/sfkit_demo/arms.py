"""Running arms side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from sfkit.errors import SfkitError
from sfkit_demo.run import ArmResult, Progress, run_arm
from sfkit_demo.settings import Job

_GRACE_SECONDS = 5.0


class ArmError(SfkitError):
    """An arm failed in its process."""


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    news: Connection = field(repr=False)


def run_jobs(jobs: Sequence[Job], workers: int, tell: Callable[[Progress], None]) -> Iterator[ArmResult]:
    """Run jobs, ``workers`` at a time, and yield their results as they finish.

    Processes are spawned: torch's threads do not survive a fork. They end with this generator, however it ends.

    Args:
        jobs: What to run, in this order.
        workers: Processes at a time; 0 runs everything in this process (for tests and debuggers).
        tell: Called in this process with news.

    Raises:
        SfkitError: A job failed; one of ours comes through as it is, any other as :class:`ArmError` with its traceback.
    """
    if workers == 0:
        for job in jobs:
            yield run_arm(job.arm, job.settings, tell)
        return
    waiting = list(jobs)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0)))
            for connection in wait([one.news for one in running]):
                one = next(one for one in running if one.news is connection)
                result = _receive(one, tell)
                if result is not None:
                    running.remove(one)
                    one.process.join()
                    yield result
    finally:
        for one in running:
            _stop(one)


def _start(job: Job) -> _Running:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender), daemon=True)
    process.start()
    sender.close()  # so that the death of the child reads as the end of the stream
    return _Running(job, process, receiver)


def _receive(one: _Running, tell: Callable[[Progress], None]) -> ArmResult | None:
    """Handle one message; the result, if that is what it was."""
    try:
        message = one.news.recv()
    except EOFError:
        one.process.join()
        raise ArmError(
            f"The process of arm {one.job.arm.name!r} ended with exit code {one.process.exitcode} before it was done.",
            "A code of -9 is often a machine out of memory: try --jobs 1.",
        ) from None
    if isinstance(message, ArmResult):
        return message
    if isinstance(message, BaseException):
        raise message
    tell(message)
    return None


def _stop(one: _Running) -> None:
    one.process.terminate()
    one.process.join(_GRACE_SECONDS)
    if one.process.is_alive():
        one.process.kill()
        one.process.join()
    one.news.close()


def _work(job: Job, news: Connection) -> None:
    """What a process does."""
    # Ctrl-C reaches the whole group of processes; the parent alone reacts, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    # As many processes as cores: a second thread in each would only wait for the other's.
    torch.set_num_threads(1)
    try:
        outcome: Any = run_arm(job.arm, job.settings, news.send)
    except BaseException as error:
        outcome = _portable(error, job.arm.name)
    with suppress(BrokenPipeError):  # the parent has given up
        news.send(outcome)


def _portable(error: BaseException, arm: str) -> SfkitError:
    """The error itself where it is one of ours and survives the journey, else its traceback in words."""
    if isinstance(error, SfkitError):
        with suppress(Exception):
            copy = pickle.loads(pickle.dumps(error))
            if isinstance(copy, SfkitError):
                return copy
    text = "".join(traceback.format_exception(error)).rstrip()
    return ArmError(f"Arm {arm!r} failed:\n{text}")
