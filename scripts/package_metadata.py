"""The part of a package's metadata that all packages share: a hook of hatchling, which each pyproject.toml names.

The repository's address stands once, under ``tool.sfkit`` of the root's pyproject.toml. URLs are made from it, and in
the page for PyPI the links and pictures of README.md, which are relative in a checkout.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomllib
from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()(?!https?://|#|mailto:)([^)\s]+)(?=\))")


def absolute(page: str, folder: str, repository: str) -> str:
    """A page of ``folder`` (relative to the root) with absolute links; pictures come from the raw file."""

    def link(found: re.Match[str]) -> str:
        start, target = found.groups()
        path = str((Path("/") / folder / target).resolve().relative_to("/"))
        raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/") + f"/main/{path}"
        return start + (raw if start.startswith("!") else f"{repository}/blob/main/{path}")

    return LINK.sub(link, page)


class CustomMetadataHook(MetadataHookInterface):
    """Fills in what a project lists as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        repository = root["tool"]["sfkit"]["repository"]
        folder = Path(self.root).resolve().relative_to(ROOT).as_posix()
        page = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        shared = {
            "classifiers": [*root["project"]["classifiers"]],
            "keywords": root["project"]["keywords"],
            "readme": {"content-type": "text/markdown", "text": absolute(page, folder, repository)},
            "urls": {
                "Homepage": repository,
                "Documentation": f"{repository}/tree/main/docs",
                "Repository": repository,
                "Issues": f"{repository}/issues",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            },
        }
        metadata.update({key: value for key, value in shared.items() if key in metadata.get("dynamic", ())})
