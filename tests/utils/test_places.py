"""A path of this machine is distinguished from a repository, and JSON from a stranger is read within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfkit.config import beyond_bounds
from sfkit.utils.places import digest_in, is_local, parse_json, read_json, scrubbed, without_places


@pytest.mark.parametrize("text", ["/data/x", "~/x", "~alice/x", "./x", "../x", ".", "C:\\x", "C:/x", "\\\\host\\x"])
def test_fault_57_a_path_is_recognized_by_its_beginning(text: str) -> None:
    assert is_local(text)


@pytest.mark.parametrize("text", ["owner/model", "model", "", "b v c h w", "main", ".hidden", "a" * 5000, "a/\x00"])
def test_a_repository_is_no_path(text: str) -> None:
    assert not is_local(text)


def test_a_relative_path_is_one_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_local("models/dino")
    (tmp_path / "models" / "dino").mkdir(parents=True)
    assert is_local("models/dino")
    assert not is_local("models")
    assert is_local("models", bare=True)


def test_fault_59_json_is_read_within_bounds(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": [1, 2]}')
    assert read_json(file) == {"a": [1, 2]}
    assert read_json(file, size=13, depth=3) == {"a": [1, 2]}
    with pytest.raises(ValueError, match="larger than 12 bytes"):
        read_json(file, size=12)
    with pytest.raises(ValueError, match="nested more than 2 deep"):
        read_json(file, depth=2)


def test_fault_81_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"cameras": {"front": {"width": 1}, "front": {"width": 2}}}')
    with pytest.raises(ValueError, match="one key twice: front"):
        read_json(file)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}'])
def test_fault_81_a_number_that_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no finite number"):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "9" * 5_000, "", "[1,]", b"\xff"])
def test_what_is_no_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_a_billion_values_of_few_lists_are_not_walked() -> None:
    value: list[object] = [1, 1]
    for _ in range(30):
        value = [value] * 9
    assert "more than 1048576 values" in beyond_bounds(value)
    value.append(value)
    assert beyond_bounds([1, {"a": (2**53, [2**53 + 1])}], largest=2**53) == "1.a.1.0 is a whole number beyond 2^53"


def test_fault_57_paths_inside_options_become_digests(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    replaced: dict[str, str] = {}
    options = without_places({"files": [str(tmp_path / "w.pt"), "owner/model"], "n": 3}, replaced)
    digest = options["files"][0]
    assert options == {"files": [digest, "owner/model"], "n": 3}
    assert digest_in(options) == digest_in(f"sha256:{digest['sha256']}") == digest["sha256"]
    assert digest_in({"sha256": None}) == digest_in("sha256:unknown") == "unknown"
    assert digest_in("owner/model") is digest_in({"n": [3]}) is None
    assert scrubbed(f"from {tmp_path / 'w.pt'}", replaced) == f"from sha256:{digest['sha256']}"
    assert without_places("~nobody-of-this-name/w.pt", replaced) == {"sha256": None}
    assert scrubbed("/home/alice/other", replaced) == "a local file or folder"
