"""Which frame of which dataset a sample is, in a form that reaches the policy's forward: for the feature store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset

from sfkit_lerobot.combined import locate, parts
from sfkit_lerobot.normalization import Batch

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

#: LeRobot's preprocessor keeps what begins with ``observation.``, and drops ``frame_index`` and ``dataset_index``. The
#: value is a text, as ``task`` is: to read it, nothing waits for the device.
FRAME_KEY = "observation.frame_key"
Key = tuple[str, int, int]


class FrameKeys(Dataset[dict[str, Any]]):
    """A LeRobot dataset whose samples say which frames they are, under ``"observation.frame_key"``.

    A frame is ``"<repo_id>@<digest>:<episode>:<frame within it>"``. The digest is that of the episode: its length, and
    the statistics of its pictures that LeRobot recorded. It stays when the dataset grows, and changes when the episode
    is recorded or edited anew. A global index would shift, and be the same in two datasets that are mixed.

    Args:
        dataset: A ``LeRobotDataset``, or a ``Subset``, ``ConcatDataset``, ``MultiLeRobotDataset`` or ``FutureFrames``
            of some.

    Raises:
        ConfigError: A dataset that is not LeRobot's.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._parts = parts(dataset)
        self._sources = [_sources_of(part) for part in self._parts]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = dict(self.dataset[index])
        source, _ = locate(self.dataset, index)
        return {**sample, FRAME_KEY: self._key(source, int(sample["episode_index"]), int(sample["frame_index"]))}

    def _key(self, source: LeRobotDataset, episode: int, frame: int) -> str:
        (names,) = (names for part, names in zip(self._parts, self._sources, strict=True) if part is source)
        return f"{names[episode]}:{episode}:{frame}"

    @property
    def revisions(self) -> dict[str, str | None]:
        """Revision of each dataset, by its id."""
        return {part.repo_id: getattr(part, "revision", None) for part in self._parts}

    def of_batch(self, batch: Batch) -> list[str] | None:
        """The frames of a batch of a single dataset, by its ``index`` and ``episode_index``; None without them."""
        (part, *others), columns = self._parts, [batch.get("episode_index"), batch.get("index")]
        if others or not all(isinstance(column, Tensor) for column in columns):
            return None
        episodes, indices = (column.reshape(-1).tolist() for column in columns if column is not None)
        starts = {episode: int(part.meta.episodes[episode]["dataset_from_index"]) for episode in set(episodes)}
        pairs = zip(episodes, indices, strict=True)
        return [self._key(part, episode, index - starts[episode]) for episode, index in pairs]

    def keys(self) -> list[Key]:
        """The frame of each sample, in order; loads no picture."""
        columns = {
            id(part): [part.hf_dataset.data.column(name).to_pylist() for name in ("episode_index", "frame_index")]
            for part in self._parts
        }
        found = []
        for index in range(len(self)):
            source, at = locate(self.dataset, index)
            episodes, frames = columns[id(source)]
            found.append(read_key(self._key(source, episodes[at], frames[at])))
        return found


def _sources_of(dataset: LeRobotDataset) -> dict[int, str]:
    """``"<repo_id>@<digest>"`` of each episode."""
    import pyarrow.parquet as pq

    pictures = [f"stats/{key}/" for key in sorted(dataset.meta.camera_keys)]
    found = {}
    for file in sorted((Path(dataset.root) / "meta" / "episodes").rglob("*.parquet")):
        names = pq.read_schema(file).names
        said = ["length", *sorted(name for name in names if name.startswith(tuple(pictures)))]
        for row in pq.read_table(file, columns=["episode_index", *said]).to_pylist():
            text = json.dumps([[name, row[name]] for name in said])
            found[row["episode_index"]] = f"{dataset.repo_id}@{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return found


def read_key(text: str) -> Key:
    """``("<repo_id>@<digest>", episode, frame)`` of a sample's text."""
    source, episode, frame = text.rsplit(":", 2)
    return source, int(episode), int(frame)


def keys_in(batch: Batch, frames: FrameKeys | None = None) -> tuple[Key, ...] | None:
    """For ``Views.keys``: the frames of a batch; None where they are not known.

    Args:
        batch: Of the policy's forward.
        frames: The dataset, where its samples do not say which frames they are.
    """
    texts = batch.get(FRAME_KEY)
    if isinstance(texts, str):
        texts = [texts]
    if texts is None and frames is not None:
        texts = frames.of_batch(batch)
    return None if texts is None else tuple(map(read_key, texts))


def later_keys(texts: Any, steps: int, there: list[bool]) -> list[str]:
    """The keys of the frames so many steps ahead; as they are where the episode ends before."""
    found = []
    for text, is_there in zip(texts, there, strict=True):
        source, episode, frame = read_key(text)
        found.append(f"{source}:{episode}:{frame + steps * is_there}")
    return found
