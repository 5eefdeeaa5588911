"""Finding weights: local files first, then a Hub, played here by a small server."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
from sfkit_backbones.hub import Source, locate

from sfkit.errors import CheckpointError

WEIGHTS = bytes(range(256)) * 64
OFFICIAL = Source("owner/model", ("model.safetensors", "model.pt"), revision="v1", gate="Accept the license")


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: {"owner/model/resolve/v1/model.safetensors": WEIGHTS})
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks_after: int | None = None
    asked: list[str] = field(default_factory=list)


def open_session_anew() -> None:
    """Older releases of the Hub's client decide whether they are offline when a session is opened."""
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.lstrip("/")
            state.asked.append(f"{self.command} {path}")
            repo = "/".join(path.split("/")[:2])
            if repo in state.refusals or path not in state.files:
                code, reason = state.refusals.get(repo, (404, "EntryNotFound"))
                self.send_response(code)
                self.send_header("X-Error-Code", reason)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.files[path]
            start = int(match.group(1)) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", hashlib.sha1(path.split("/")[3].encode()).hexdigest())
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if with_body:
                end = len(body) if state.breaks_after is None else start + state.breaks_after
                self.wfile.write(body[start:end])
                self.close_connection = end < len(body)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the Hub's client waits between its attempts
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    real = huggingface_hub.hf_hub_download
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for timeout in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # a busy machine may need more than 10 seconds
        monkeypatch.setattr(huggingface_hub.constants, timeout, 600)
    open_session_anew()
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *args, **options: real(*args, **options, endpoint=endpoint, cache_dir=tmp_path / "cache", token=False),
    )
    yield state
    server.shutdown()
    server.server_close()


def test_the_official_file_is_fetched_once(hub: Hub) -> None:
    path = locate(OFFICIAL)
    assert path.read_bytes() == WEIGHTS
    fetched = sum(line.startswith("GET") for line in hub.asked)
    assert locate(OFFICIAL) == path
    assert sum(line.startswith("GET") for line in hub.asked) == fetched == 1


def test_the_pinned_or_the_given_revision_is_requested(hub: Hub) -> None:
    locate(OFFICIAL)
    assert all("/resolve/v1/" in line for line in hub.asked)
    hub.files["owner/model/resolve/dev/model.safetensors"] = b"dev"
    assert locate(OFFICIAL, revision="dev").read_bytes() == b"dev"
    hub.files["else/where/resolve/main/model.safetensors"] = b"elsewhere"
    assert locate(OFFICIAL, "else/where").read_bytes() == b"elsewhere"


def test_the_next_name_is_tried(hub: Hub) -> None:
    hub.files = {"owner/model/resolve/v1/model.pt": b"pt"}
    assert locate(OFFICIAL).name == "model.pt"
    hub.files = {}
    with pytest.raises(CheckpointError, match=r"no file model\.safetensors or model\.pt"):
        locate(Source("owner/other", OFFICIAL.files))


@pytest.mark.parametrize(
    ("code", "reason", "says"),
    [
        (
            403,
            "GatedRepo",
            r"not been granted(.|\n)*Accept the license at https://huggingface.co/owner/model(.|\n)*hf ",
        ),
        (401, "RepoNotFound", r"no repository 'owner/model'"),
        (404, "RevisionNotFound", r"no revision 'v1'"),
        (503, "Unavailable", r"could not be fetched(.|\n)*by hand"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refusals_say_what_to_do(hub: Hub, code: int, reason: str, says: str) -> None:
    hub.refusals["owner/model"] = (code, reason)
    with pytest.raises(CheckpointError, match=says):
        locate(OFFICIAL)


def test_what_is_there_already_works_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"owner/model/resolve/v1/model.pt": b"pt"}
    path = locate(OFFICIAL)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    open_session_anew()
    asked = len(hub.asked)
    assert locate(OFFICIAL) == path
    with pytest.raises(CheckpointError, match=r"not on this machine(.|\n)*HF_HUB_OFFLINE"):
        locate(Source("owner/unseen"))
    assert len(hub.asked) == asked


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_download_leaves_no_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.breaks_after = 1000
    with pytest.raises(CheckpointError, match="could not be fetched"):
        locate(OFFICIAL)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    hub.breaks_after = None
    assert locate(OFFICIAL).read_bytes() == WEIGHTS


def test_a_known_digest_is_checked(hub: Hub) -> None:
    good = hashlib.sha256(WEIGHTS).hexdigest()
    assert locate(Source("owner/model", revision="v1", sha256={"model.safetensors": good}))
    bad = Source("owner/model", revision="v1", sha256={"model.safetensors": "0" * 64})
    with pytest.raises(CheckpointError, match=f"sha256 {good}, expected 0000"):
        locate(bad)
    hub.files["owner/model/resolve/dev/model.safetensors"] = b"another version"
    assert locate(bad, revision="dev"), "the digest is that of the pinned revision"
    with pytest.raises(CheckpointError, match="sha256"):
        locate(OFFICIAL, sha256="1" * 64)


def test_local_files_and_folders_come_first(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"pt")
    assert locate(OFFICIAL, str(tmp_path)) == tmp_path / "model.pt"
    assert locate(OFFICIAL, str(tmp_path / "model.pt")) == tmp_path / "model.pt"
    (tmp_path / "model.safetensors").write_bytes(b"st")
    assert locate(OFFICIAL, str(tmp_path)) == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("{tmp}/missing.safetensors", "no file or folder"),
        ("./weights", "no file or folder"),
        ("model.pth", "no file or folder"),
        ("{tmp}", "holds no weights"),
        ("not a name", "neither a local file or folder nor the name of a repository"),
    ],
)
def test_a_wrong_path_is_no_repository(tmp_path: Path, where: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        locate(OFFICIAL, where.format(tmp=tmp_path))
