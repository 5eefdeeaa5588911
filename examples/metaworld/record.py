"""Record Meta-World's scripted experts, with depth and camera geometry, as a LeRobotDataset.

Record with `record.py --out ROOT`, look at a recording with `record.py --check ROOT`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from recorder.cameras import choose_gl
from recorder.geometry import GeometryError
from recorder.options import Options, RecordingError, require_same_options
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from recorder.scene import Scene
    from recorder.staging import Staging

DEFAULTS = Options()
ATTEMPTS_PER_EPISODE = 20


def record(root: Path, options: Options, console: Console) -> bool:
    """Make the recording at `root`, or the rest of it.

    Args:
        root: The dataset's folder; episodes wait in `<root>.partial` until all are there.
        options: What to record. An unfinished recording continues only with equal options.
        console: Where progress goes.

    Returns:
        False if the recording was there already.

    Raises:
        RecordingError: Other options, something else at `root`, no renderer, an expert that never succeeds.
        GeometryError: The cameras' geometry disagrees with the simulator's.
    """
    from recorder.dataset import MANIFEST_FILE
    from recorder.staging import partial_path

    manifest = root / MANIFEST_FILE
    if manifest.exists():
        require_same_options(manifest, options)
        shutil.rmtree(partial_path(root), ignore_errors=True)  # left if the very last step was interrupted
        console.print(f"{root} is a finished recording with these options: nothing to do.")
        return False
    if root.exists() and any(root.iterdir()):
        raise RecordingError(f"{root} exists and is no recording of this tool; choose another --out")
    choose_gl()  # must precede the first import of mujoco
    _record_and_assemble(root, options, console)
    return True


def _record_and_assemble(root: Path, options: Options, console: Console) -> None:
    from recorder.dataset import assemble
    from recorder.scene import Scene
    from recorder.staging import Staging

    staging = Staging(root, options)
    missing = staging.missing()
    if 0 < len(missing) < options.total_episodes:
        console.print(f"Continuing: {options.total_episodes - len(missing)} episodes are there already.")
    scenes = {task: Scene(task, options) for task in options.tasks}
    try:
        with _progress(console, "recording", options.total_episodes, options.total_episodes - len(missing)) as advance:
            for number in missing:
                _record_episode(scenes[options.task_of(number)], staging, number, options)
                advance()
        with _progress(console, "assembling", options.total_episodes) as advance:
            if root.exists():
                root.rmdir()  # empty, as checked above
            assemble(staging, root, scenes[options.tasks[0]], options, advance)
    finally:
        for scene in scenes.values():
            scene.close()


def _record_episode(scene: Scene, staging: Staging, number: int, options: Options) -> None:
    for attempt in range(ATTEMPTS_PER_EPISODE):
        episode, succeeded = scene.play(scene.seed_for(number, attempt))
        if succeeded or options.keep_failures:
            staging.save(number, episode, failed_attempts=attempt)
            return
    raise RecordingError(
        f"{options.task_of(number)}: {ATTEMPTS_PER_EPISODE} attempts in a row failed; raise --max-steps, "
        "lower --action-noise or --action-repeat, or pass --keep-failures"
    )


def show_check(root: Path, console: Console) -> None:
    """Re-read the recording at `root` with LeRobot and print what is in it."""
    from recorder.check import check, open_dataset, summary_table

    frames = len(open_dataset(root))
    with _progress(console, "reading", frames) as advance:
        summaries = check(root, advance)
    console.print(summary_table(root, summaries))


@contextmanager
def _progress(console: Console, what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    columns = (TextColumn(f"{what:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(what, total=total, completed=done)
        yield lambda: progress.advance(bar)


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of the new dataset.")] = None,
    check: Annotated[Path | None, typer.Option(help="Only re-read this recording and summarize it.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Meta-World task; repeat for several.", show_default=" ".join(DEFAULTS.tasks)),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes to keep per task.")] = DEFAULTS.episodes,
    seed: Annotated[int, typer.Option(help="Decides objects, goals and noise.")] = DEFAULTS.seed,
    image_size: Annotated[int, typer.Option(help="Side of the RGB images, pixels.")] = DEFAULTS.image_size,
    depth_size: Annotated[int, typer.Option(help="Side of the depth maps, pixels.")] = DEFAULTS.depth_size,
    corner_fovy: Annotated[float, typer.Option(help="Field of view of corner2, degrees.")] = DEFAULTS.corner_fovy,
    action_noise: Annotated[float, typer.Option(help="Noise on executed actions only.")] = DEFAULTS.action_noise,
    action_repeat: Annotated[int, typer.Option(help="Simulator steps per dataset frame.")] = DEFAULTS.action_repeat,
    max_steps: Annotated[int, typer.Option(help="Longest episode, dataset frames.")] = DEFAULTS.max_steps,
    keep_failures: Annotated[bool, typer.Option(help="Keep failed episodes too.")] = DEFAULTS.keep_failures,
    crf: Annotated[int, typer.Option(help="x264 quality; lower is better.")] = DEFAULTS.crf,
) -> None:
    """Record Meta-World's scripted experts as a LeRobotDataset, or check a recording."""
    console = Console()
    try:
        if check is not None:
            show_check(check, console)
            return
        if out is None:
            raise RecordingError("pass --out ROOT to record, or --check ROOT to look at a recording")
        options = Options(
            tuple(task or DEFAULTS.tasks), episodes, seed, image_size, depth_size, corner_fovy,
            action_noise, action_repeat, max_steps, keep_failures, crf,
        )  # fmt: skip
        if record(out.resolve(), options, console):
            show_check(out, console)
    except (RecordingError, GeometryError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
