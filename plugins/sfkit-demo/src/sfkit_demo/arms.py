"""Run arms in parallel, each in its own process."""

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
    messages: Connection = field(repr=False)


def run_jobs(jobs: Sequence[Job], workers: int, on_progress: Callable[[Progress], None]) -> Iterator[ArmResult]:
    """Run jobs, ``workers`` at a time, and yield their results as they finish.

    Processes are spawned, since torch's threads do not survive a fork. They end when this generator ends or is closed.

    Args:
        jobs: The jobs, in order.
        workers: Number of processes; 0 runs everything in this process (for tests and debuggers).
        on_progress: Called in this process with the progress of each arm.

    Raises:
        SfkitError: A job failed. Errors of sfkit pass through; others become an :class:`ArmError` with their traceback.
    """
    if workers == 0:
        for job in jobs:
            yield run_arm(job.arm, job.settings, on_progress)
        return
    waiting = list(jobs)
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0)))
            for connection in wait([one.messages for one in running]):
                one = next(one for one in running if one.messages is connection)
                result = _receive(one, on_progress)
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
    # With only the child's end open, its death ends the stream.
    sender.close()
    return _Running(job, process, receiver)


def _receive(one: _Running, on_progress: Callable[[Progress], None]) -> ArmResult | None:
    """Handle one message; return it if it is the result."""
    try:
        message = one.messages.recv()
    except EOFError:
        one.process.join()
        raise ArmError(
            f"The process of arm {one.job.arm.name!r} ended with exit code {one.process.exitcode} before its result.",
            "A code of -9 is often a machine out of memory: try --jobs 1.",
        ) from None
    if isinstance(message, ArmResult):
        return message
    if isinstance(message, BaseException):
        raise message
    on_progress(message)
    return None


def _stop(one: _Running) -> None:
    one.process.terminate()
    one.process.join(_GRACE_SECONDS)
    if one.process.is_alive():
        one.process.kill()
        one.process.join()
    one.messages.close()


def _work(job: Job, messages: Connection) -> None:
    """Run a job in a child process, and send its progress and its result."""
    # Ctrl-C signals the whole process group; only the parent handles it, and stops its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    # There are as many processes as cores, so more threads would only slow them down.
    torch.set_num_threads(1)
    outcome: ArmResult | SfkitError
    try:
        outcome = run_arm(job.arm, job.settings, messages.send)
    except BaseException as error:
        outcome = _portable(error, job.arm.name)
    with suppress(BrokenPipeError):  # the parent has stopped listening
        messages.send(outcome)


def _portable(error: BaseException, arm: str) -> SfkitError:
    """The error itself if it is sfkit's and can be pickled, else an ArmError with its traceback."""
    if isinstance(error, SfkitError):
        with suppress(Exception):
            copy = pickle.loads(pickle.dumps(error))
            if isinstance(copy, SfkitError):
                return copy
    text = "".join(traceback.format_exception(error)).rstrip()
    return ArmError(f"Arm {arm!r} failed:\n{text}")
