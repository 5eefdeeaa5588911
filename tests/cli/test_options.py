"""Options in one word."""

from __future__ import annotations

from typing import Any

import pytest

from sfkit.cli.console import parse_options
from sfkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("config=tiny", {"config": "tiny"}),
        ("size=224, compile=true,fill=0.5", {"size": 224, "compile": True, "fill": 0.5}),
        ("weights=a=b", {"weights": "a=b"}),
        ('{"view_order": ["wrist", "top"]}', {"view_order": ["wrist", "top"]}),
    ],
)  # fmt: skip
def test_they_are_read(text: str, wanted: dict[str, Any]) -> None:
    assert parse_options(text) == wanted


@pytest.mark.parametrize("text", ["tiny", "=3", "{size: 3}"])
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_options(text)
