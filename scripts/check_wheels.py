"""Fail unless each wheel given holds what users need of it, and nothing else.

A wheel must name its entry points in the group ``sfkit`` (unless it is a plugin of LeRobot), point them at modules
that it contains, ship ``py.typed`` and the license, install exactly one top-level package, depend on no place, and on
no package of this project without a lower bound. Its page on PyPI must have absolute links, and URLs beside it.
With ``--release`` the address of the repository must be a real one.
"""

from __future__ import annotations

import configparser
import re
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

OURS = re.compile(r"(spatial-forcing|sfkit-[\w-]+|lerobot_policy_spatial_forcing)(?![\w-])(\[[\w,-]+\])?(.*)")
URLS = {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
#: Stands for the repository's owner until there is one.
PLACEHOLDER = "/OWNER/"


def faults(path: Path, *, release: bool = False) -> list[str]:
    """Return what is wrong with one wheel, in words."""
    wheel = zipfile.ZipFile(path)
    files = wheel.namelist()
    info = next(name.split("/")[0] for name in files if name.split("/")[0].endswith(".dist-info"))
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    entry_points = configparser.ConfigParser()
    if f"{info}/entry_points.txt" in files:
        entry_points.read_string(wheel.read(f"{info}/entry_points.txt").decode())

    found = []
    # The name `sfkit` on PyPI is a stranger's, so the core alone is called otherwise than its package.
    package = {"spatial-forcing": "sfkit"}.get(metadata["Name"], metadata["Name"].replace("-", "_"))
    if (tops := {name.split("/")[0] for name in files} - {info}) != {package}:
        found.append(f"installs {sorted(tops)}, not {package} alone")
    if f"{package}/py.typed" not in files:
        found.append("has no py.typed")
    if f"{info}/licenses/LICENSE" not in files:
        found.append("has no LICENSE")
    if stray := [name for name in files if re.search(r"(^|/)(__pycache__|\.[^/]*)(/|$)|\.pyc$|(^|/)tests/", name)]:
        found.append(f"holds what no user needs: {stray[0]}")
    # LeRobot finds its plugins by the name of the distribution, and imports them by itself.
    if not (entry_points.has_section("sfkit") or package.startswith("lerobot_")):
        found.append("has no entry point in the group sfkit")
    for section in entry_points.sections():
        for name, value in entry_points[section].items():
            module = value.split(":")[0].strip().replace(".", "/")
            if not {f"{module}.py", f"{module}/__init__.py"} & set(files):
                found.append(f"entry point {section}.{name} names {value}, which it does not contain")
    return found + of_metadata(metadata, release=release)


def of_metadata(metadata: Message, *, release: bool) -> list[str]:
    """What is wrong with what PyPI shows, and with the requirements."""
    requirements = metadata.get_all("Requires-Dist", [])
    found = [f"depends on a place: {line}" for line in requirements if "@" in line]
    for line in requirements:
        ours = OURS.match(line)
        # `all` names extras of this very distribution.
        if ours and ours[1] != metadata["Name"] and not ours[3].startswith(">="):
            found.append(f"depends on {line} without a lower bound")
    urls = dict(text.split(", ", 1) for text in metadata.get_all("Project-URL", []))
    found += [f"has no URL {name}" for name in sorted(URLS - urls.keys())]
    found += [f"has no {name}" for name in ("Keywords", "Classifier", "License-Expression") if not metadata[name]]
    page = metadata.get_payload()
    if metadata["Description-Content-Type"] != "text/markdown" or len(page) < 200:
        found.append("has no page for PyPI")
    found += [f"its page has a relative link: {link}" for link in re.findall(r"\]\((?!https?://|#)([^)]*)\)", page)]
    if release and PLACEHOLDER in "".join([page, *urls.values()]):
        found.append("names no repository: set tool.sfkit.repository in pyproject.toml before a release")
    return found


def main(arguments: list[str]) -> int:
    """Print one line for each wheel; return the number of faulty ones."""
    release = "--release" in arguments
    bad = 0
    for path in [Path(text) for text in arguments if text != "--release"]:
        found = faults(path, release=release)
        bad += bool(found)
        print(f"{path.name}: {'; '.join(found) or 'ok'}")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
