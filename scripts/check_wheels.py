"""Fail unless each wheel given holds what users need of it, and nothing else.

A wheel must name its entry points in the group ``sfkit`` (unless it is a plugin of LeRobot), point them at modules
that it contains, ship ``py.typed``, install exactly one top-level package, and carry no reference to a path or a host.
"""

import configparser
import sys
import zipfile
from email.parser import Parser
from pathlib import Path


def faults(path: Path) -> list[str]:
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
    # LeRobot finds its plugins by the name of the distribution, and imports them by itself.
    if not (entry_points.has_section("sfkit") or package.startswith("lerobot_")):
        found.append("has no entry point in the group sfkit")
    for section in entry_points.sections():
        for name, value in entry_points[section].items():
            module = value.split(":")[0].strip().replace(".", "/")
            if not {f"{module}.py", f"{module}/__init__.py"} & set(files):
                found.append(f"entry point {section}.{name} names {value}, which it does not contain")
    found += [f"depends on a place: {line}" for line in metadata.get_all("Requires-Dist", []) if "@" in line]
    return found


def main(paths: list[str]) -> int:
    """Print one line for each wheel; return the number of faulty ones."""
    bad = 0
    for path in map(Path, paths):
        found = faults(path)
        bad += bool(found)
        print(f"{path.name}: {'; '.join(found) or 'ok'}")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
