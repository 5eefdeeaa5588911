"""A path of this machine is distinguished from a repository, and JSON from a stranger is read within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfkit.utils.places import digest_in, is_local, read_json, scrubbed, without_places


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
