"""Live progress in the terminal, one line for each arm."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from typing_extensions import Self

from sfkit_demo.run import Progress

#: Weight of the previous value in the displayed loss; the losses of single batches vary too much to read.
_SMOOTHING = 0.9


class Live:
    """A bar for each arm, with its phase, smoothed action loss and cosine.

    Args:
        arms: Names of the arms.
        steps: Steps of each arm.
        console: The console.
    """

    def __init__(self, arms: list[str], steps: int, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<10}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._ids: dict[str, TaskID] = {arm: self._bars.add_task(arm, total=steps, text="waiting") for arm in arms}
        self._loss: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, progress: Progress) -> None:
        """Show the progress of an arm."""
        text = progress.phase
        if progress.loss is not None:
            before = self._loss.get(progress.arm, progress.loss)
            self._loss[progress.arm] = _SMOOTHING * before + (1 - _SMOOTHING) * progress.loss
            text = f"action loss {self._loss[progress.arm]:.3f}"
            if progress.cosine is not None:
                text += f"  cosine {progress.cosine:.2f}"
        self._bars.update(self._ids[progress.arm], completed=progress.step, text=text)

    def done(self, arm: str) -> None:
        """Mark an arm as finished."""
        self._bars.update(self._ids[arm], text="done")
        self._bars.stop_task(self._ids[arm])
