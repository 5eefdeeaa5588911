"""Extras of the core bring the plugins; the distribution's name is not that of a stranger's package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "plugins").is_dir():
    pytest.skip("needs a checkout of the repository", allow_module_level=True)
tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


CORE = project(ROOT)
PLUGINS = {
    found["name"]: found for found in (project(file.parent) for file in sorted(ROOT.glob("plugins/*/pyproject.toml")))
}


def names(requirements: list[str]) -> dict[str, str]:
    return {re.split(r"[\[>=;<]", text)[0].strip(): text for text in requirements}


def test_every_plugin_is_brought_by_an_extra() -> None:
    brought = {name for extra in CORE["optional-dependencies"].values() for name in names(extra)}
    assert set(PLUGINS) <= brought


def test_all_names_every_extra_but_testing() -> None:
    (text,) = CORE["optional-dependencies"]["all"]
    assert set(re.findall(r"[\w-]+", text.partition("[")[2])) == set(CORE["optional-dependencies"]) - {"all", "testing"}


@pytest.mark.parametrize("extra", CORE["optional-dependencies"])
def test_an_extra_installs_on_every_python_of_the_core(extra: str) -> None:
    for name, text in names(CORE["optional-dependencies"][extra]).items():
        needs_312 = name == "lerobot" or PLUGINS.get(name, CORE)["requires-python"] == ">=3.12"
        assert needs_312 == ("python_version>='3.12'" in text), text


# The fast environment is LeRobot's alone: policies are evaluated where nothing of sfkit need be.
@pytest.mark.parametrize("name", sorted(PLUGINS.keys() - {"lerobot_env_fast_libero"}))
def test_a_plugin_requires_this_version_of_the_core(name: str) -> None:
    assert names(PLUGINS[name]["dependencies"])["spatial-forcing"] == f"spatial-forcing>={CORE['version']}"


def test_a_namesake_beside_the_package_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "sfkit-1.2.dist-info").mkdir()
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import sfkit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip uninstall sfkit" in done.stderr


def test_our_own_distributions_are_no_namesake() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import sfkit"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
