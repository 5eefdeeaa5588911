"""The command ``sfkit store``: build, verify, info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sfkit_store.build import Progress
    from sfkit_store.frames import LeRobotFrames

app = typer.Typer(
    help="Compute a teacher's features once; verify a store, or show what it holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Folder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]


@app.command()
def build(  # noqa: PLR0917 - Typer makes an option of each parameter
    folder: _Folder,
    dataset: Annotated[str, typer.Option(help="LeRobot dataset: its id on the Hub, or the name of a local one.")],
    teacher: Annotated[str, typer.Option(help="`sfkit teachers` lists them.")],
    grid: Annotated[str, typer.Option(help="Rows and columns of the student's tokens, as 16x16.")],
    root: Annotated[Path | None, typer.Option(help="Folder of a local dataset.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the dataset.")] = None,
    episodes: Annotated[str, typer.Option(help="Only these, as 0,1,5.")] = "",
    policy: Annotated[
        str | None,
        typer.Option(
            help="A LeRobot policy, folder or repository, whose views are stored; else the recorded pictures are. Or "
            "file.py:function, which takes nothing and returns (policy, preprocessor)."
        ),
    ] = None,
    teacher_options: Annotated[str, typer.Option(help="Its options, as key=value,key=value.")] = "",
    teacher_layers: Annotated[str, typer.Option(help="As 12,24; by default the teacher's default.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bf16, or int8 with one scale for each token.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Frames that the teacher sees at a time.", min=1)] = 8,
    workers: Annotated[int, typer.Option(help="Processes that load pictures.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where the teacher runs, as cuda.")] = "cpu",
    repair: Annotated[bool, typer.Option("--repair", help="Compute damaged shards anew.")] = False,
) -> None:
    """Compute a teacher's features of all frames. A build that was stopped goes on where it stopped."""
    from sfkit.cli.console import parse_options, plain_console
    from sfkit_store.build import build_store

    rows, columns = _numbers(grid.replace("x", ","), "--grid", "16x16", count=2)
    layers = _numbers(teacher_layers, "--teacher-layers", "12,24")
    frames = _frames(
        dataset, policy, root=root, revision=revision, episodes=_numbers(episodes, "--episodes", "0,1,5"),
        batch_size=batch_size, num_workers=workers,
    )  # fmt: skip
    with _progress(f"{teacher} on {dataset}") as progress:
        store = build_store(
            folder, (teacher, parse_options(teacher_options)), frames, grid=(rows, columns),
            teacher_layers=layers or None, dtype=_dtype(dtype), device=device, repair=repair, progress=progress,
        )  # fmt: skip
    plain_console(highlight=False).print(
        f'{folder}: {len(store)} frames, {store.bytes / 2**20:.1f} MiB. Train with teacher="store:{folder}".',
        soft_wrap=True,
    )


@app.command()
def verify(folder: _Folder) -> None:
    """Read every byte and compare it with its checksum; exit status 1 if a shard is damaged."""
    from sfkit.cli.console import plain_console, titled
    from sfkit_store.store import Store

    store, bad, count = Store(folder), 0, 0
    console = plain_console(highlight=False)
    for name, fault in store.verify():
        count += 1
        if fault:
            bad += 1
            console.print(titled("damaged:", f" {name}: {fault}", "bold red"), soft_wrap=True)
    if bad:
        console.print("Run the same `sfkit store build` with --repair: it computes these shards alone.")
        raise typer.Exit(1)
    console.print(f"{folder}: {count} shards, {len(store)} frames: all as written.", soft_wrap=True)


@app.command()
def info(folder: _Folder) -> None:
    """Show what a store holds."""
    from rich.table import Table

    from sfkit.cli.console import plain_console
    from sfkit_store.store import Store

    store = Store(folder)
    manifest, teacher = store.manifest, store.manifest.teacher
    table = Table(box=None, show_header=False)
    ids = {
        dataset: sum(source.rpartition("@")[0] == dataset for source, _, _ in store.episodes)
        for dataset in store.datasets
    }
    rows = {
        "teacher": f"{teacher.name}, license {teacher.identity['license']}",
        "weights": teacher.identity.get("weights", ""),
        "options": ", ".join(f"{key}={value}" for key, value in teacher.options.items()),
        "layers": ", ".join(f"{layer} ({width} channels)" for layer, width in sorted(manifest.widths.items())),
        "grid": "x".join(map(str, manifest.grid)),
        "cameras": ", ".join(manifest.cameras),
        "views": f"{manifest.view[0]}x{manifest.view[1]} pixels, {manifest.pixels}",
        "dtype": manifest.dtype,
        "frames": f"{len(store)} in {len(store.episodes)} episodes",
        "size": f"{store.bytes / 2**20:.1f} MiB",
        **{
            f"dataset {name}": f"{ids[name]} episodes, revision {store.datasets[name] or 'unknown'}"
            for name in store.datasets
        },
        "made with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    plain_console(highlight=False).print(table)


def _numbers(text: str, option: str, example: str, count: int | None = None) -> list[int]:
    from sfkit.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 9 for part in parts) or count not in (None, len(parts)):
        raise ConfigError(f"{option} {text!r} cannot be read.", f"Write {option} {example}.")
    return [int(part) for part in parts]


def _dtype(text: str) -> Any:
    from sfkit.errors import ConfigError
    from sfkit_store.encoding import PARTS

    name = {"bf16": "bfloat16"}.get(text, text)
    if name not in PARTS:
        raise ConfigError(f"--dtype {text} is none of float32, bf16, int8.", "Choose one of them.")
    return name


def _frames(
    dataset: str, policy: str | None, *, root: Path | None, revision: str | None, episodes: list[int], batch_size: int,
    num_workers: int,
) -> LeRobotFrames:  # fmt: skip
    from sfkit.errors import ConfigError
    from sfkit_store.frames import LeRobotFrames

    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise ConfigError(
            f"`sfkit store build` reads LeRobot datasets, and LeRobot cannot be imported: {error}.",
            'pip install "spatial-forcing[lerobot,store]", or build from Python with sfkit_store.build_store.',
        ) from error
    network, preprocessor = (None, None) if policy is None else _policy(policy)
    opened = LeRobotDataset(
        dataset, root=root, revision=revision, episodes=episodes or None,
        delta_timestamps=_time_steps(network, dataset, root, revision),
    )  # fmt: skip
    return LeRobotFrames(opened, network, preprocessor=preprocessor, batch_size=batch_size, num_workers=num_workers)


def _time_steps(policy: Any, dataset: str, root: Path | None, revision: str | None) -> Any:
    """The time steps that the policy reads, as LeRobot's trainer asks the dataset for them."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.factory import resolve_delta_timestamps

    if not hasattr(getattr(policy, "config", None), "observation_delta_indices"):
        return None
    return resolve_delta_timestamps(policy.config, LeRobotDatasetMetadata(dataset, root=root, revision=revision))


def _policy(where: str) -> tuple[Any, Any]:
    """A policy, on the CPU, and its preprocessor or None."""
    if ".py:" in where:
        import runpy

        path, _, name = where.rpartition(":")
        made = runpy.run_path(path)[name]()
        return (*made, None)[:2] if isinstance(made, tuple) else (made, None)
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(where)
    config.device = "cpu"
    network = get_policy_class(config.type).from_pretrained(where, config=config)
    overrides = {"device_processor": {"device": "cpu"}}
    return network, make_pre_post_processors(config, where, preprocessor_overrides=overrides)[0]


class _progress:  # noqa: N801 - used as a function
    """A bar on standard error with frames, rate and time left; hidden where that is no terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=None, rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance(self, done: int, total: int | None) -> None:
        speed = self._bar.tasks[0].speed or 0.0
        self._bar.update(self._task, completed=done, total=total, rate=f"{speed:.1f} frames/s")
