"""What goes to the Hub at the end of a run: the plain policy, its projector, and a card that says what is needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest


class Api:
    """Stands in for the Hub; keeps what was uploaded."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep

    def create_repo(self, **_):
        return SimpleNamespace(repo_id="somebody/policy")

    def upload_folder(self, folder_path, **_):
        Path(folder_path).rename(self.keep)
        return SimpleNamespace(repo_url=SimpleNamespace(url="nowhere"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LeRobot's template of a card
def test_the_hub_gets_the_plain_policy_and_a_card(trained, tmp_path, monkeypatch) -> None:
    keep = tmp_path / "uploaded"
    monkeypatch.setattr("lerobot.policies.pretrained.HfApi", lambda: Api(keep))
    monkeypatch.setattr("huggingface_hub.ModelCard.validate", lambda self: None)  # asks the Hub
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = SimpleNamespace(
        dataset=SimpleNamespace(repo_id="somebody/data"), steps=6, batch_size=2, seed=0,
        save_pretrained=lambda folder: (Path(folder) / "train_config.json").write_text("{}"),
    )  # fmt: skip
    trained[0].policy.push_model_to_hub(run)
    assert json.loads((keep / "config.json").read_text())["type"] == "smolvla"
    assert (keep / "spatial_forcing" / "projector.safetensors").is_file()
    card = (keep / "README.md").read_text()
    assert "pip install lerobot_policy_spatial_forcing" in card
    assert "- smolvla\n" in card
    assert "sf_smolvla" not in card
    assert trained[0].policy.spatial_forcing is not None
