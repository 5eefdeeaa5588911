"""Building a store: each frame once, whole shards alone, and nothing of another recipe."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sfkit_store import Store, StoreError, build_store
from sfkit_store.shards import shard_files

from sfkit.errors import ConfigError, SfkitError, ViewsError
from sfkit.testing.tiny import PatchTeacher
from sfkit.views.types import Views


def shards(folder: Path) -> list[str]:
    return [path.name for path in shard_files(folder / "shards")]


def test_two_builds_are_the_same_to_the_last_byte(tiny: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    tiny.build(tmp_path / "again")
    assert shards(folder) == shards(tmp_path / "again")
    assert len(shards(folder)) == 3
    for name in ("manifest.json", "index.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_views_that_come_one_by_one_make_the_same_store(tiny: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    frames = tiny.Frames()
    stream = (replace(views) for views in frames.views(range(tiny.FRAMES)))
    store = tiny.build(tmp_path / "stream", stream)
    first, second = Store(folder), store
    for key in frames.keys:
        assert all(map(torch.equal, first.read(key, ["2.values"]), second.read(key, ["2.values"])))
    assert store.datasets == {"local/toy": None}


def test_a_stream_goes_on_where_it_stopped(tiny: SimpleNamespace, tmp_path: Path) -> None:
    frames = tiny.Frames(batch_size=3)  # batches lie across the borders of shards

    def stopping() -> object:
        yield from frames.views(range(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.build(tmp_path / "a", stopping())
    assert len(shards(tmp_path / "a")) == 1
    tiny.build(tmp_path / "a", frames.views(range(tiny.FRAMES)))
    tiny.build(tmp_path / "b", frames.views(range(tiny.FRAMES)))
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_a_dataset_that_grew_keeps_its_shards(tiny: SimpleNamespace, folder: Path) -> None:
    before = shards(folder)
    frames = tiny.Frames(18)
    store = tiny.build(folder, frames)
    assert len(store) == 18
    assert frames.loaded == list(range(12, 18))
    assert set(before) < set(shards(folder))
    assert all(key in store for key in frames.keys)


def test_fault_37_an_edited_episode_is_computed_anew(tiny: SimpleNamespace, folder: Path) -> None:
    edited = tiny.Frames(6, source="local/toy@fedcba9876543210")
    with pytest.raises(StoreError, match=r"was edited since: its digest was 0123456789abcdef, and is fedcba9876543210"):
        Store(folder).read(edited.keys[0], ["2.values"])
    store = tiny.build(folder, edited)
    assert edited.loaded == list(range(6))
    assert all(key in store for key in [*edited.keys, *tiny.Frames().keys])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid": (2, 2)}, r"grid is \[4, 4\], not \[2, 2\]"),
        ({"teacher_layers": (1,)}, r"widths is \{'2': 12, '3': 12\}, not \{'1': 12\}"),
        ({"dtype": "int8"}, "dtype is 'float32', not 'int8'"),
        ({"teacher": PatchTeacher({"dim": 8})}, r"teacher's options is \{'dim': 12, .*, not \{'dim': 8, "),
    ],
)
def test_fault_37_another_recipe_is_refused_with_both_values(
    options: dict, says: str, tiny: SimpleNamespace, folder: Path
) -> None:
    before = shards(folder)
    for count in (12, 18):  # whether or not there is something to compute
        frames = tiny.Frames(count)
        with pytest.raises(StoreError, match=says):
            tiny.build(folder, frames, **options)
        assert not frames.loaded
    assert shards(folder) == before


def test_fault_25_cameras_in_another_order_are_refused(tiny: SimpleNamespace, folder: Path) -> None:
    frames = tiny.Frames(18)
    views = (replace(each, names=each.names[::-1]) for each in frames.views(range(18)))
    frames.views = lambda indices: views
    with pytest.raises(StoreError, match=r"cameras is \['cam0', 'cam1'\], not \['cam1', 'cam0'\]"):
        tiny.build(folder, frames)


def test_a_frame_that_comes_twice_is_named(tiny: SimpleNamespace, tmp_path: Path) -> None:
    frames = tiny.Frames()
    with pytest.raises(StoreError, match=r"frame 1 of episode 0 of local/toy .* comes twice"):
        tiny.build(tmp_path, [*frames.views([0, 1]), *frames.views([1, 2])])
    twice = SimpleNamespace(
        keys=[*frames.keys, frames.keys[3]], batch_size=2, pixels="x", datasets={}, views=lambda indices: iter(())
    )
    with pytest.raises(StoreError, match=r"frame 3 of episode 0 .* comes twice"):
        tiny.build(tmp_path / "b", twice)


def test_views_without_keys_are_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ViewsError, match="do not say which frames"):
        tiny.build(tmp_path, [replace(next(tiny.Frames().views([0])), keys=None)])


def test_nothing_to_store_is_an_error(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no frames"):
        tiny.build(tmp_path, [])


def test_two_builders_in_one_folder_are_one_too_many(tiny: SimpleNamespace, folder: Path) -> None:
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True);input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(StoreError, match="Another process builds in"):
            tiny.build(folder)
        other.kill()
    assert len(tiny.build(folder)) == tiny.FRAMES


def test_a_full_disk_loses_no_shard(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, count = Path.open, []

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        if mode == "wb" and "safetensors" in self.name:
            count.append(self)
            return Full(file) if len(count) == 2 else file
        return file

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(StoreError, match="The disk is full"):
        tiny.build(tmp_path / "store")
    assert len(shards(tmp_path / "store")) == 1
    assert not list((tmp_path / "store" / "shards").glob(".*"))
    frames = tiny.Frames()
    assert len(tiny.build(tmp_path / "store", frames)) == tiny.FRAMES
    assert frames.loaded == list(range(4, 12))


def test_a_disk_that_is_too_small_is_known_at_once(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    frames = tiny.Frames()
    with pytest.raises(StoreError, match=r"needs 0\.0 GiB more"):
        tiny.build(tmp_path / "store", frames)
    assert len(frames.loaded) == 2


def test_fault_89_a_teacher_that_gathers_statistics_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gathers statistics while a policy trains"):
        tiny.build(tmp_path, teacher="geometry", teacher_layers=(1,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher_layers": (2, 9)}, "has layers 1 to 3, not 2, 9"),
        ({"teacher_layers": (0,)}, "has layers 1 to 3, not 0"),
        ({"grid": (0, 4)}, r"Bad options for a store: grid\.0 must be >= 1, got 0"),
        ({"dtype": "float16"}, "Bad options for a store: dtype"),
    ],
)
def test_wrong_arguments_are_named(options: dict, says: str, tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny.build(tmp_path, **options)
    assert not shards(tmp_path)


def test_nan_is_not_stored(tiny: SimpleNamespace, tmp_path: Path) -> None:
    class Broken(PatchTeacher):
        def encode(self, model, views: Views, layers, grid):
            maps = super().encode(model, views, layers, grid)
            maps[0].values[0, 0, 1, 1, 0] = torch.nan
            return maps

    with pytest.raises(SfkitError, match="returned NaN or infinity"):
        tiny.build(tmp_path, teacher=Broken())
    assert not shards(tmp_path)


def test_a_folder_with_shards_and_no_manifest_is_not_touched(tiny: SimpleNamespace, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"holds shards, and .* no manifest\.json"):
        tiny.build(folder)
    assert len(shards(folder)) == 3


def test_the_default_layer_is_the_teachers(tiny: SimpleNamespace, tmp_path: Path) -> None:
    store = build_store(tmp_path, PatchTeacher(), tiny.Frames(), grid=tiny.GRID)
    assert store.manifest.layers == (3,)


def test_paths_of_this_machine_are_not_in_the_manifest(tiny: SimpleNamespace, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"x")

    class Local(PatchTeacher):
        @property
        def identity(self) -> dict[str, str]:
            return {**super().identity, "weights": str(weights)}

        @property
        def spec(self):
            return super().spec.model_copy(update={"options": {"weights": str(weights)}})

    tiny.build(tmp_path / "store", teacher=Local())
    text = (tmp_path / "store" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" in text
