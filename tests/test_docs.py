"""Every Python block of the README and the docs is run, in order, as a reader would run it.

Where a block would download weights, tiny ones stand in; the words of the block are not changed.
"""

from __future__ import annotations

import csv
import functools
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from sfkit.registry.hookspecs import EXTRAS

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Shell lines of the docs that tests elsewhere, or CI itself, run; anything else must be added here or be run.
RUN_ELSEWHERE = {
    "sfkit demo",
}
INSTALL = re.compile(r'pip install "spatial-forcing\[([\w,-]+)\]"')

pytestmark = pytest.mark.skipif(not PAGES, reason="the docs are not beside the tests of an installed wheel")


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text()) if found == language]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def small_smolvla(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A SmolVLA whose backbone is tiny and made here, behind the configuration class that the docs name."""
    pytest.importorskip("lerobot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lerobot.policies.smolvla import configuration_smolvla as module
        from sfkit_lerobot.testing import tiny_smolvlm
    folder = tiny_smolvlm(tmp_path / "vlm", layers=16, texts=("reach the goal",))
    small: dict[str, Any] = {
        "vlm_model_name": str(folder), "load_vlm_weights": False, "resize_imgs_with_padding": (64, 64),
    }  # fmt: skip
    monkeypatch.setattr(module, "SmolVLAConfig", functools.partial(module.SmolVLAConfig, **small))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the README's quickstart would download: its comment says what stands in for what."""
    pytest.importorskip("lerobot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lerobot.datasets
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.smolvla import SmolVLAPolicy
        from sfkit_demo import RECORDING
        from sfkit_depth_anything.teachers import DA3Base
        from sfkit_lerobot.testing import tiny_smolvla, tiny_smolvlm
    folder = str(tmp_path / "smolvla_base")
    cameras = [f"observation.images.camera{index}" for index in (1, 2, 3)]
    vlm = tiny_smolvlm(tmp_path / "small-vlm", layers=16, texts=("reach the goal",))
    tiny_smolvla(vlm, cameras=cameras, chunk_size=50, train_expert_only=True).save_pretrained(folder)
    for cls in (PreTrainedConfig, SmolVLAPolicy):
        load = cls.from_pretrained.__func__

        def from_folder(cls: Any, name: str, *args: Any, load: Any = load, **kwargs: Any) -> Any:
            return load(cls, folder if name == "lerobot/smolvla_base" else name, *args, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", classmethod(from_folder))

    def recording(name: str, delta_timestamps: dict[str, list[float]]) -> Any:
        assert name == "you/your-dataset"
        times = {key: [value * 30 / 40 for value in values] for key, values in delta_timestamps.items()}
        dataset = small("local/metaworld-mini", RECORDING, episodes=[0], delta_timestamps=times, video_backend="pyav")
        # The reader's camera is called front, and his dataset has no depth.
        return _Renamed(dataset, {"observation.images.corner2": "observation.images.front"})

    small = lerobot.datasets.LeRobotDataset
    monkeypatch.setattr(lerobot.datasets, "LeRobotDataset", recording)
    configure = DA3Base.configure
    monkeypatch.setattr(
        DA3Base, "configure", lambda self, options: configure(self, options or {"config": "tiny", "size": 112})
    )


class _Renamed(torch.utils.data.Dataset[dict[str, Any]]):
    """The images, state, actions and task of a dataset, under other names."""

    def __init__(self, dataset: Any, names: dict[str, str]) -> None:
        self.dataset, self.names, self.meta = dataset, names, dataset.meta

    def __len__(self) -> int:
        return min(len(self.dataset), 24)

    def __getitem__(self, index: int) -> dict[str, Any]:
        kept = ("observation.state", "action", "task", *self.names)
        sample = {key: value for key, value in self.dataset[index].items() if key.startswith(kept)}
        return {self.names.get(key, key): value for key, value in sample.items() if "depth" not in key}


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of openpi and prismatic, under the names that the docs import."""
    monkeypatch.setattr(sys, "path", [*sys.path, *map(str, ROOT.glob("plugins/*/tests/support"))])


@pytest.mark.slow
@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=named)
def test_python_blocks_run(page: Path, small_smolvla: None) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's, which a reader sees too
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.usefixtures("downloads")
def test_the_quickstart_runs_and_aligns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = ROOT / "README.md"
    (code,) = blocks(page, "python")
    assert len([line for line in code.splitlines() if line]) <= 15
    names: dict[str, Any] = {"__name__": "quickstart"}
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="sfkit"):
        warnings.simplefilter("ignore")  # LeRobot's, which a reader sees too
        exec(compile(code, str(page), "exec"), names)
    policy = names["policy"]
    shown = str(policy.spatial_forcing.status())
    assert "gradient reaches the policy: yes" in shown
    assert "optimizer trains the projector: yes" in shown
    assert policy.spatial_forcing.teachers[0].name == "da3-base"
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] > 0
    size = re.compile(r"projector \d+\.\d [kM]|da3-base@\d+")  # those of the stand-ins are smaller
    assert size.sub("", caplog.records[0].getMessage()) in size.sub("", page.read_text())
    policy.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "spatial_forcing" / "projector.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_shell_lines_are_run_somewhere(page: Path, tmp_path: Path) -> None:
    if page.parent != ROOT:
        pytest.importorskip("sfkit_lerobot", reason="the plugins are not installed")
    for folder in ("docs", "examples", "plugins", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    sfkit = Path(sys.executable).parent / "sfkit"
    for code in blocks(page, "bash") + blocks(page, "console"):
        for line in code.splitlines():
            command = line.split("#")[0].removeprefix("$").strip()
            if not command or command in RUN_ELSEWHERE or INSTALL.fullmatch(command):
                continue
            assert command.startswith("sfkit "), f"{page.name}: {command!r} is run by no test"
            arguments = [str(sfkit), *shlex.split(command)[1:]]
            done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_readmes_figures_are_those_of_the_study() -> None:
    rows = list(
        csv.DictReader(
            (ROOT / "plugins" / "sfkit-demo" / "src" / "sfkit_demo" / "seeds" / "results.csv").read_text().splitlines()
        )
    )
    readme = (ROOT / "README.md").read_text()
    for title, column, digits in (
        ("object position", "object_cm", 2),
        ("residual depth", "depth_r2_wrist", 2),
        ("held-out action loss", "flow_loss", 3),
    ):
        cells = []
        for arm in ("untrained", "plain", "shuffled", "geometry"):
            values = [float(row[column]) for row in rows if row["arm"] == arm]
            assert len(values) == 5
            cells.append(f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}")
        line = next(line for line in readme.splitlines() if line.startswith(f"| {title}"))
        assert line.endswith("| " + " | ".join(cells) + " |")


def test_links_to_files_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_install_lines_name_extras_that_exist() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    lines = [(page, line) for page in PAGES for line in page.read_text().splitlines() if "pip install" in line]
    named = {extra for _, line in lines for found in INSTALL.findall(line) for extra in found.split(",")}
    assert named <= extras
    # The name `sfkit` alone would bring a stranger's package.
    stranger = re.compile(r'install (.* )?"?sfkit(["\[ ]|$)')
    assert not [(page.name, line) for page, line in lines if stranger.search(line)]


def brought_by(extras: set[str]) -> set[str]:
    """The distributions of this project that extras install, and what those need in turn."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    files = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    projects = {found["name"]: found for found in (tomllib.loads(file.read_text())["project"] for file in files)}

    def ours(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[>=;]", text)[0] for text in requirements} & projects.keys()

    found: set[str] = set()
    new = {name for extra in extras for name in ours(projects["spatial-forcing"]["optional-dependencies"][extra])}
    while new - found:
        found |= new
        new = {name for one in new for name in ours(projects[one]["dependencies"])}
    return found


def used_by(page: Path) -> set[str]:
    """The plugins whose teachers, commands and modules the blocks of a page use, and the teachers of its tables."""
    text = "\n".join(code for language, code in FENCE.findall(page.read_text()))
    table = "\n".join(re.findall(r"^\| `teacher` \|.*", page.read_text(), re.MULTILINE))
    words = re.findall(r"""["'=]([a-z][a-z0-9-]*)(?=[:"'\s])""", f"{text}\n{table}")
    extras = {EXTRAS["teacher"][word] for word in words if word in EXTRAS["teacher"]}
    extras |= {
        EXTRAS["command"][word] for word in re.findall(r"^sfkit ([a-z-]+)", text, re.M) if word in EXTRAS["command"]
    }
    modules = set(re.findall(r"^\+?(?:from|import) (\w+)", text, re.MULTILINE))
    found = {f"sfkit-{extra}" for extra in extras} | {
        one.replace("_", "-") for one in modules if one.startswith("sfkit_")
    }
    if "lerobot" in modules:
        found.add("sfkit-lerobot")
    if re.search(r"^lerobot-train", text, re.MULTILINE):
        found.add("lerobot_policy_spatial_forcing")
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if used_by(page)], ids=named)
def test_a_page_installs_what_its_blocks_use(page: Path) -> None:
    extras = {extra for found in INSTALL.findall(page.read_text()) for extra in found.split(",")}
    assert used_by(page) <= brought_by(extras), f"{page.name} installs {sorted(extras)}"
