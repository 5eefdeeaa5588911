"""The license of a model, from its card."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = "unknown: see the model card"

#: SPDX identifiers by the Hub's names.
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc0-1.0": "CC0-1.0"}


def license_of(repo: str, folder: Path | None, revision: str | None) -> str:
    """The license that the model card states; ``UNKNOWN`` if there is no card or it cannot be fetched."""
    card = folder / "README.md" if folder is not None else _fetched(repo, revision)
    if card is None or not card.is_file():
        return UNKNOWN
    return _stated(card) or UNKNOWN


def _fetched(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(repo, "README.md", revision=revision))
    # A file that is not in the local cache raises an OSError, as most connection errors do.
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        return None


def _stated(card: Path) -> str:
    from huggingface_hub.repocard import metadata_load

    try:
        front = metadata_load(card) or {}
    except Exception:  # a card may hold anything; one that cannot be parsed states no license
        return ""
    stated = front.get("license")
    name = ", ".join(stated) if isinstance(stated, list) else str(stated or "")
    if name == "other":
        name = str(front.get("license_name") or "")
    link = front.get("license_link")
    if name in _SPDX:
        return _SPDX[name]
    if name.startswith("cc-"):
        return name.upper()
    return f"{name} ({link})" if name and link else name
