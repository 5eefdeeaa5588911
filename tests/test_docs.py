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

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Shell lines of the docs that tests elsewhere, or CI itself, run; anything else must be added here or be run.
RUN_ELSEWHERE = {
    "make demo",
}
INSTALL = re.compile(r'pip install "spatial-forcing\[([\w,-]+)\]"')

pytestmark = pytest.mark.skipif(not PAGES, reason="the docs are not beside the tests of an installed wheel")


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text()) if found == language]


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
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of openpi and prismatic, under the names that the docs import."""
    monkeypatch.setattr(sys, "path", [*sys.path, *map(str, ROOT.glob("plugins/*/tests/support"))])


@pytest.mark.slow
@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_python_blocks_run(
    page: Path, small_smolvla: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="sfkit"):
        warnings.simplefilter("ignore")  # LeRobot's, which a reader sees too
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)
    if page == ROOT / "README.md":
        shown = capsys.readouterr().out
        assert "gradient reaches the policy: yes" in shown
        assert "optimizer trains the projector: yes" in shown
        size = re.compile(r"projector \d+\.\d [kM]")  # the reader's SmolVLA is wider than the stand-in
        assert size.sub("", caplog.records[0].getMessage()) in size.sub("", page.read_text())
        assert Path("outputs/policy/spatial_forcing/projector.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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
