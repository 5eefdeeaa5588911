"""From a LeRobot dataset to a store and a policy that trains on it, from Python and on the command line."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lerobot", reason="LeRobot is not installed")
    pytest.importorskip("sfkit_lerobot", reason="sfkit-lerobot is not installed")

from sfkit_lerobot import FrameKeys
from sfkit_store import LeRobotFrames, Store, StoreError, build_store
from typer.testing import CliRunner

from sfkit import SpatialForcing
from sfkit.errors import ConfigError
from sfkit.testing.tiny import PatchTeacher

KEYS = ("observation.images.front", "observation.images.wrist")
GRID = (4, 4)


def record(root: Path, videos: bool) -> None:
    """Two episodes of three frames; still pictures of blocks, which video keeps well."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind = "video" if videos else "image"
    image = {"dtype": kind, "shape": (32, 48, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    features = {**dict.fromkeys(KEYS, image), "observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create("local/toy", fps=10, features=features, root=root, use_videos=videos)
    chance = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(3):
            pictures = {key: np.kron(chance.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))) for key in KEYS}
            values = {key: chance.normal(size=4).astype(np.float32) for key in ("observation.state", "action")}
            dataset.add_frame(
                {**{key: value.astype(np.uint8) for key, value in pictures.items()}, **values, "task": "wave"}
            )
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("datasets")
    record(base / "images", videos=False)
    return {"images": base / "images"}


@pytest.fixture(scope="module")
def parts(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A dataset with chunks of actions, a function that makes the policy, and its preprocessor."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from sfkit_lerobot.testing import tiny_smolvla, tiny_smolvlm

    vlm = tiny_smolvlm(tmp_path_factory.mktemp("smolvlm"), texts=("wave",))

    def make() -> Any:
        torch.manual_seed(0)
        return tiny_smolvla(vlm, cameras=KEYS, image_shape=(3, 32, 48))

    times = {"action": [step / 10 for step in range(8)]}
    dataset = LeRobotDataset("local/toy", root=roots["images"], delta_timestamps=times)
    preprocess, postprocess = make_smolvla_pre_post_processors(make().config, dataset.meta.stats)
    return SimpleNamespace(dataset=dataset, make=make, preprocess=preprocess, postprocess=postprocess)


def trained(parts: SimpleNamespace, teacher: Any) -> tuple[list[float], list[torch.Tensor]]:
    policy = SpatialForcing.wrap(parts.make(), teacher, student_layer=2, teacher_layer=2)
    optimizer = torch.optim.SGD(policy.parameters(), 0.01)
    loader = torch.utils.data.DataLoader(
        FrameKeys(parts.dataset), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    losses = []
    for step, batch in enumerate(loader):
        torch.manual_seed(step)
        loss, _ = policy.forward(parts.preprocess(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [each.grad for each in policy.parameters() if each.grad is not None]


def test_a_lerobot_policy_trains_as_with_the_online_teacher(parts: SimpleNamespace, tmp_path: Path) -> None:
    frames = LeRobotFrames(parts.dataset, parts.make(), preprocessor=parts.preprocess, batch_size=2)
    store = build_store(tmp_path, PatchTeacher(), frames, grid=GRID, teacher_layers=(2,))
    assert len(store) == 6
    assert store.manifest.pixels == "policy smolvla"
    assert store.datasets.keys() == {"local/toy"}
    online, stored = (trained(parts, teacher) for teacher in (PatchTeacher(), f"store:{tmp_path}"))
    assert stored[0] == pytest.approx(online[0], rel=1e-5)
    for one, other in zip(stored[1], online[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_fault_27_image_transforms_are_refused_or_found(parts: SimpleNamespace, tmp_path: Path) -> None:
    dataset = parts.dataset
    store = build_store(tmp_path, PatchTeacher(), LeRobotFrames(dataset, parts.make()), grid=GRID, teacher_layers=(2,))
    assert len(store) == 6
    dataset.set_image_transforms(lambda picture: picture.flip(-1))
    try:
        with pytest.raises(ConfigError, match="has image transforms"):
            LeRobotFrames(dataset)
        with pytest.raises(StoreError, match="sees other pixels than the teacher saw"):
            trained(parts, f"store:{tmp_path}")
    finally:
        dataset.clear_image_transforms()


def test_the_command_builds_verifies_and_shows(parts: SimpleNamespace, roots: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("sfkit_vggt", reason="sfkit-vggt is not installed")
    from sfkit_store.cli import app

    parts.make().save_pretrained(tmp_path / "policy")
    parts.preprocess.save_pretrained(tmp_path / "policy")
    parts.postprocess.save_pretrained(tmp_path / "policy")
    store = tmp_path / "store"
    build = [
        *("build", str(store), "--dataset", "local/toy", "--root", str(roots["images"]), "--grid", "4x4"),
        *("--policy", str(tmp_path / "policy"), "--teacher", "vggt", "--teacher-options", "config=tiny,size=56"),
        *("--teacher-layers", "1,2", "--dtype", "bf16", "--batch-size", "2"),
    ]
    run = CliRunner().invoke
    assert run(app, build, catch_exceptions=False).exit_code == 0
    assert Store(store).manifest.dtype == "bfloat16"
    shown = run(app, ["info", str(store)], catch_exceptions=False).output
    assert all(word in shown for word in ("vggt", "policy smolvla", "4x4", "6 in 2 episodes", "dataset local/toy"))
    assert "all as written" in run(app, ["verify", str(store)], catch_exceptions=False).output
    (shard,) = (store / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[-3] ^= 8
    shard.write_bytes(data)
    damaged = run(app, ["verify", str(store)], catch_exceptions=False)
    assert damaged.exit_code == 1
    assert f"damaged: {shard.name}: its checksum does not fit" in damaged.output.replace("\n", " ")
    assert run(app, [*build, "--repair"], catch_exceptions=False).exit_code == 0
    assert run(app, ["verify", str(store)], catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "16"], "--grid '16' cannot be read"),
        (["--grid", "4x4", "--dtype", "fp8"], "--dtype fp8 is none of"),
        (["--grid", "4x4", "--teacher-layers", "a"], "--teacher-layers 'a' cannot be read"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], says: str, roots: dict[str, Path], tmp_path: Path) -> None:
    from sfkit_store.cli import app

    common = ["build", str(tmp_path), "--dataset", "local/toy", "--root", str(roots["images"]), "--teacher", "geometry"]
    with pytest.raises(ConfigError, match=says):
        CliRunner().invoke(app, [*common, *arguments], catch_exceptions=False)


def test_recorded_pictures_are_stored_without_a_policy(parts: SimpleNamespace, tmp_path: Path) -> None:
    store = build_store(tmp_path, PatchTeacher(), LeRobotFrames(parts.dataset), grid=(2, 3))
    assert (store.manifest.pixels, store.manifest.view, store.manifest.cameras) == ("recorded", (32, 48), KEYS)


@pytest.mark.slow
def test_video_gives_the_same_features_each_time(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    record(tmp_path / "videos", videos=True)
    dataset = LeRobotDataset("local/toy", root=tmp_path / "videos", video_backend="pyav")
    for name in ("one", "two"):
        build_store(tmp_path / name, PatchTeacher(), LeRobotFrames(dataset), grid=(2, 3))
    assert [p.name for p in (tmp_path / "one" / "shards").iterdir()] == [
        p.name for p in (tmp_path / "two" / "shards").iterdir()
    ]


def test_a_policy_that_crops_within_forward_is_refused(parts: SimpleNamespace) -> None:
    from sfkit_lerobot.testing import tiny_diffusion

    with pytest.raises(ConfigError, match="crop or change their pictures within forward"):
        LeRobotFrames(parts.dataset, tiny_diffusion(cameras=KEYS))
