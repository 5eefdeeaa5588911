"""Makes Python import sfkit and its plugins from one checkout, whatever is installed."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import unquote, urlparse

import tomllib

HERE = Path(__file__).resolve().parent


@contextmanager
def use_checkout(root: Path) -> Iterator[None]:
    """Within the block the packages and entry points of ``root`` are found, and those of no other checkout.

    Entry points come from metadata that is written here from the checkout's project files. Installed metadata may name
    modules that another commit has elsewhere.
    """
    projects = _projects(root)
    foreign = {str(path) for project in installed_checkouts() for path in (project, project / "src")}
    before = list(sys.path)
    with tempfile.TemporaryDirectory(prefix="record-training-") as metadata:
        _write_metadata(projects, Path(metadata))
        own = [str(path) for project in projects for path in (project, project / "src") if _has_packages(path)]
        # Behind everything else: an installed openpi or prismatic wins over its stand-in.
        standins = [str(path) for project in projects for path in [project / "tests" / "support"] if path.is_dir()]
        sys.path[:] = [metadata, *own, *(entry for entry in before if entry not in foreign), *standins]
        try:
            yield
        finally:
            sys.path[:] = before


def check_modules(root: Path) -> None:
    """Raise if a module of sfkit or of its plugins came from elsewhere than ``root``."""
    foreign = [project for project in installed_checkouts() if not project.is_relative_to(root)]
    for name, module in list(sys.modules.items()):
        file = Path(str(getattr(module, "__file__", None) or ""))
        if not file.is_absolute():  # none, or a made-up one, as torch.ops has
            continue
        file = file.resolve()
        if file.is_relative_to(root) or file.is_relative_to(HERE):
            continue
        installed = file.is_relative_to(Path(sys.prefix).resolve())  # an environment may be inside a project
        elsewhere = any(file.is_relative_to(project) for project in foreign) and not installed
        if elsewhere or re.match(r"sfkit|lerobot_policy_spatial_forcing", name):
            raise RuntimeError(f"{name} was imported from {file}, and not from the checkout {root}.")


def installed_checkouts() -> list[Path]:
    """The folders of all projects that are installed in editable form."""
    found = []
    for distribution in distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            found.append(Path(unquote(urlparse(origin["url"]).path)).resolve())
    return found


def _projects(root: Path) -> list[Path]:
    return [file.parent for file in (root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml")))]


def _has_packages(folder: Path) -> bool:
    return any(folder.glob("*/__init__.py"))


def _write_metadata(projects: list[Path], folder: Path) -> None:
    # The first metadata of a name on sys.path counts: what is installed from another commit is hidden by empty ones.
    known = {distribution.name for distribution in distributions() if distribution.entry_points.select(group="sfkit")}
    entries: dict[str, dict[str, dict[str, str]]] = {_normalized(name): {} for name in known}
    for project in projects:
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        entries[_normalized(table["name"])] = table.get("entry-points", {})
    for name, groups in entries.items():
        made = folder / f"{name}-0.dist-info"
        made.mkdir()
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()
        ]
        (made / "entry_points.txt").write_text("".join(lines))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
