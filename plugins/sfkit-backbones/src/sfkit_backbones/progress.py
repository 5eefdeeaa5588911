"""A progress bar for large files in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: For fewer bytes, a bar would only flicker.
_WORTH_SHOWING = 200 * 2**20


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the share of ``total`` bytes that is done, on standard error.

    Yields:
        A function to call with the number of bytes since its last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    hidden = total < _WORTH_SHOWING or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=total)
        yield lambda size: bar.advance(task, size)
