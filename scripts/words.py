"""Look for words that the project has given up, and for British spelling. ``make lint`` runs this.

    .venv/bin/python scripts/words.py

One of them ends in exit status 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Old public names and options, and what took their place.
GONE = {
    r"\bwrap(ped)?\(.*\bdepth=|\bdepth=[\"']encoder|--depth\b|\bsf\.depth\b": "student_layer",
    r"\bDepth( \||\])|\[Depth,": "StudentLayer",
    r"\b(default_depth|depth_name|by_depth|rank_depths|DepthRank|DepthHealth)\b": "student_layer",
    r"[\"']depth[\"']: (\d|[\"']encoder).*[\"'](teacher|objective|layer)|\.depths\b": "student_layer",
    r"\bsf\.layer\b|[\"']layer[\"']: \d|\bwrap\(.*[( ]layer=": "teacher_layer",
    r"\bjoin=[\"'](auto|output|carrier|add)\b|\bsf\.join\b|\bconfig\.join\b": "attach_loss",
    r"\brecompute=[\"']?(nothing|cheap|all)\b": "none, selective, full",
    r"\bsf_weight\b": "sf_effective_weight",
    r"(?<!sf_)\bvalid_tokens\b": "sf_valid_token_fraction",
    r"[\"']dominates[\"']: [\d.]|\boptions\.dominates\b": "max_grad_ratio",
    r"[\"']saturated[\"']: [\d.]|\boptions\.saturated\b": "max_cosine",
    r"[\"']shifted[\"']: [\d.]|\boptions\.shifted\b": "spatial_shift_ratio",
    r"[\"']persist[\"']: [\d.]|\boptions\.persist\b": "patience",
    r"\bsfkit layers\b": "sfkit rank-layers",
    r"\b(check_registration|RegistrationError|misregistration)\b|\bof register\b": "correspondence",
    r"\b(LaterFrames|later_key|at_later_frame|later_present)\b|\blater moment\b": "FutureFrames, future frame",
    r"\b(Framing|PlaceholderAdapter)\b|\bframing=": "ImageGeometry, image_geometry, ImageTokenAdapter",
    r"\bhow_to_unfreeze\b": "unfreeze_hint",
    r"\b(trunk_config|TrunkParity)\b": "backbone_config, BackboneParity",
    r"\b(PictureTeacher|PictureOptions|teacher_pictures|verify_pictures)\b": "ImageTeacher, ImageOptions, ..._images",
    r"\bbuilding import.*\bNamed\b|\bNamed \||\(Configured\b|import.*\bConfigured\b": "ComponentLike, Configurable",
    r"\bsfkit\.checkpoint/1\b": "sfkit.checkpoint/3",
}

BRITISH = re.compile(
    r"(?<![a-z])(colour|behaviour|neighbour|favour|honour|centre|grey|licence|catalogue|judgement|misspelt|learnt)"
    r"|(normal|random|standard|recogn|regular|initial|synchron|penal|summar|vector|quant|optim|minim|maxim|critic|sanit"
    r"|general|serial|organ|parallel|discret|visual)is(e|es|ed|er|ers|ing|ation|ations)(?![a-z])"
    r"|(?<![a-z])(milli|centi)?metres?(?![a-z])|labelled(?!by)|fulfil(?![a-z])",
    re.IGNORECASE,
)

#: Phrases that the house style leaves out, and what to write.
PHRASES = {
    r"\btold\b": "given, known, set",
    r"\blikewise\b": "repeat it",
    r"\bof the class:": "class attribute",
    r"\bas ever\b": "leave it out",
    r"\bgoes? before\b": "overrides",
    r"\bwish(es)?\b": "requests",
}

#: A key of recorded fixtures.
ALLOWED = re.compile(r"images_normalised")

_TEXT = {".py", ".md", ".toml", ".yml", ".sh", ".svg", ".cff", ""}
_SKIPPED = ("scripts/words.py", "tests/test_words.py", "LICENSE")


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, word and remedy of every word that binds in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        cleared = ALLOWED.sub("", line)
        for pattern, remedy in GONE.items():
            for match in re.finditer(pattern, cleared):
                yield number, match[0], f"now {remedy}"
        for match in BRITISH.finditer(cleared):
            yield number, match[0], "American spelling"
        for pattern, remedy in PHRASES.items():
            for match in re.finditer(pattern, cleared, re.IGNORECASE):
                yield number, match[0], remedy


def sources(root: Path = ROOT) -> list[Path]:
    """The tracked text files that the words bind in."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, check=True, capture_output=True, text=True).stdout
    names = [name for name in listed.splitlines() if not any(skipped in name for skipped in _SKIPPED)]
    return [root / name for name in names if (root / name).suffix in _TEXT and (root / name).is_file()]


def main() -> int:
    """Print what was found; 1 if anything binds."""
    found = 0
    for path in sources():
        for number, word, remedy in findings(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(ROOT)}:{number}: {word!r}: {remedy}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
