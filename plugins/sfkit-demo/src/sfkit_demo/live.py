"""Live progress in the terminal, one line for each arm."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from typing_extensions import Self

from sfkit_demo.run import Progress

#: Share of the old value in the shown loss: single batches jump too much to be read.
_SMOOTHING = 0.9


class Live:
    """A bar for each arm, with its phase, smoothed action loss and cosine.

    Args:
        arms: Their names.
        steps: Steps of each.
        console: Where to draw.
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

    def tell(self, news: Progress) -> None:
        """Show news of an arm."""
        text = news.phase
        if news.loss is not None:
            before = self._loss.get(news.arm, news.loss)
            self._loss[news.arm] = _SMOOTHING * before + (1 - _SMOOTHING) * news.loss
            text = f"action loss {self._loss[news.arm]:.3f}"
            if news.cosine is not None:
                text += f"  cosine {news.cosine:.2f}"
        self._bars.update(self._ids[news.arm], completed=news.step, text=text)

    def done(self, arm: str) -> None:
        """Mark an arm as finished."""
        self._bars.update(self._ids[arm], text="done")
        self._bars.stop_task(self._ids[arm])
