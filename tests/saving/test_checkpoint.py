"""Saving and resuming: the policy's own files untouched, ours beside them, everything checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfkit import SfkitWarning, SpatialForcing
from sfkit.errors import CheckpointError, ConfigError, WrapError
from sfkit.saving import checkpoint
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch


class Saving(TinyPolicy):
    """A policy with a ``save_pretrained`` of its own, in the style of LeRobot and transformers."""

    def save_pretrained(self, save_directory: Any, *, state_dict: Any = None) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(state_dict or self.state_dict()), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"type": type(self).__name__}))


def make(wrap: bool = True, **arguments: Any) -> Any:
    torch.manual_seed(0)
    policy = Saving()
    if not wrap:
        return policy
    arguments = {"student_layer": 2, **arguments}
    return SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy), **arguments)


def train(policy: Any, steps: int, optimizer: Any = None, start: int = 0) -> list[float]:
    optimizer = optimizer or torch.optim.SGD(policy.parameters(), 1e-2)
    losses = []
    for seed in range(start, start + steps):
        torch.manual_seed(seed)
        loss, info = policy(tiny_batch(seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(info["sf_loss"])
    return losses


def test_the_policys_files_are_those_of_its_own_framework(tmp_path: Path) -> None:
    plain, policy = make(wrap=False), make()
    plain.save_pretrained(tmp_path / "plain")
    policy.save_pretrained(tmp_path / "wrapped")
    SpatialForcing.export(policy, tmp_path / "export")
    for name in ("model.safetensors", "config.json"):
        wanted = (tmp_path / "plain" / name).read_bytes()
        assert (tmp_path / "wrapped" / name).read_bytes() == wanted
        assert (tmp_path / "export" / name).read_bytes() == wanted
    assert sorted(path.name for path in (tmp_path / "wrapped").iterdir()) == [
        "config.json",
        "model.safetensors",
        "spatial_forcing",
    ]
    assert not (tmp_path / "export" / "spatial_forcing").exists()
    assert policy(tiny_batch())[1]["sf_loss"] > 0, "saving must leave the policy wrapped"


def test_a_state_dict_given_to_save_pretrained_is_filtered(tmp_path: Path) -> None:
    policy = make()
    policy.save_pretrained(tmp_path, state_dict=policy.state_dict())
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "spatial_forcing" in key]


def test_pushing_while_saving_says_what_it_leaves_out(tmp_path: Path) -> None:
    class Pushing(Saving):
        def save_pretrained(self, save_directory: Any, *, push_to_hub: bool = False) -> None:  # type: ignore[override]
            super().save_pretrained(save_directory)

    policy: Any = Pushing()
    SpatialForcing.wrap(policy, "geometry", adapter=TinyAdapter(policy))
    with pytest.warns(SfkitWarning, match=r"own files only; huggingface_hub\.upload_folder\(\.\.\.\) uploads all"):
        policy.save_pretrained(tmp_path, push_to_hub=True)
    Pushing.push_to_hub = lambda self: None  # type: ignore[attr-defined]
    with pytest.warns(SfkitWarning, match=r"own files only; policy\.push_to_hub\(\.\.\.\) uploads all"):
        policy.save_pretrained(tmp_path, push_to_hub=True)


def test_a_failing_save_leaves_the_policy_wrapped(tmp_path: Path) -> None:
    policy = make()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        policy.save_pretrained(tmp_path / "file")
    assert policy(tiny_batch())[1]["sf_loss"] > 0


def test_fault_31_32_a_resumed_run_continues_exactly(tmp_path: Path) -> None:
    policy = make()
    train(policy, 3)
    policy.save_pretrained(tmp_path)
    uninterrupted = train(policy, 3, start=3)
    resumed: Any = Saving()
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    SpatialForcing.from_pretrained(resumed, tmp_path, adapter=TinyAdapter(resumed))
    assert resumed.spatial_forcing.steps == 3
    assert resumed.spatial_forcing.config == policy.spatial_forcing.config
    assert train(resumed, 3, start=3) == uninterrupted


@pytest.mark.parametrize("options", [torch.zeros(2), [], ("geometry",), {"geometry": [1]}], ids=str)
def test_options_that_are_no_mapping_are_an_error(options: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    fresh = make(wrap=False)
    with pytest.raises(ConfigError, match="Give them by component"):
        SpatialForcing.from_pretrained(fresh, tmp_path, options=options, adapter=TinyAdapter(fresh))


def test_what_is_written_names_the_teacher_and_its_license(tmp_path: Path) -> None:
    policy = make()
    policy.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "spatial_forcing" / "config.json").read_text())
    assert record["teachers"] == [{"name": "geometry", "license": "Apache-2.0"}]
    assert record["config"]["pairs"][0]["student_layer"] == 2
    keys = load_file(tmp_path / "spatial_forcing" / "projector.safetensors").keys()
    assert all(key.startswith(("pairs.", "step", "statistics.0.")) for key in keys)


def test_saving_twice_replaces_and_an_interruption_keeps_the_old(tmp_path: Path, monkeypatch: Any) -> None:
    policy = make()
    policy.spatial_forcing.save(tmp_path)
    train(policy, 1)
    policy.spatial_forcing.save(tmp_path)
    before = (tmp_path / "spatial_forcing" / "projector.safetensors").read_bytes()

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        policy.spatial_forcing.save(tmp_path)
    assert (tmp_path / "spatial_forcing" / "projector.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["spatial_forcing"]


def test_fault_29_a_projector_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    make().spatial_forcing.save(tmp_path)
    file = tmp_path / "spatial_forcing" / "projector.safetensors"
    # Copies: the file is written over below, and tensors that are mapped from it would go with it.
    state = {key: value.clone() for key, value in load_file(file).items()}
    lacking = dict(state)
    del lacking["pairs.0.projector.fc1.weight"]
    save_file(lacking, file)
    fresh = make(wrap=False)
    with pytest.raises(CheckpointError, match=r"pairs\.0\.projector\.fc1\.weight"):
        SpatialForcing.from_pretrained(fresh, tmp_path, adapter=TinyAdapter(fresh))
    assert type(fresh) is Saving, "a failed resume leaves the policy as it was"
    save_file({**state, "pairs.0.projector.extra": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="extra"):
        SpatialForcing.from_pretrained(fresh, tmp_path, adapter=TinyAdapter(fresh))
    save_file({**state, "pairs.0.projector.fc1.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(CheckpointError, match="size mismatch"):
        SpatialForcing.from_pretrained(fresh, tmp_path, adapter=TinyAdapter(fresh))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="could not be read"):
        SpatialForcing.from_pretrained(fresh, tmp_path, adapter=TinyAdapter(fresh))


def test_missing_or_foreign_folders_are_explained(tmp_path: Path, monkeypatch: Any) -> None:
    fresh = make(wrap=False)
    with pytest.raises(CheckpointError, match="has no spatial_forcing/ folder"):
        SpatialForcing.from_pretrained(fresh, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="'nobody/nothing-of-that-name': no such folder, and no repository"):
        SpatialForcing.from_pretrained(fresh, "nobody/nothing-of-that-name")
    with pytest.raises(CheckpointError, match=r"'/nosuch': no such folder\."):
        SpatialForcing.from_pretrained(fresh, "/nosuch")
    make().spatial_forcing.save(tmp_path)
    config = tmp_path / "spatial_forcing" / "config.json"
    written = config.read_text()
    for other in (1, 4, 9):
        config.write_text(written.replace("sfkit.checkpoint/5", f"sfkit.checkpoint/{other}"))
        with pytest.raises(CheckpointError, match=rf"sfkit\.checkpoint/{other}.*expected"):
            SpatialForcing.from_pretrained(fresh, tmp_path)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="could not be read"):
        SpatialForcing.from_pretrained(fresh, tmp_path)


def test_a_plain_checkpoint_loads_with_one_warning() -> None:
    plain, policy = make(wrap=False), make()
    torch.nn.init.zeros_(plain.head.weight)
    before = policy.spatial_forcing.pairs[0].projector.fc1.weight.clone()
    with pytest.warns(SfkitWarning, match="the present one was kept") as caught:
        policy.load_state_dict(plain.state_dict(), strict=True)
    assert len(caught) == 1
    assert (policy.head.weight == 0).all()
    assert torch.equal(policy.spatial_forcing.pairs[0].projector.fc1.weight, before)


def test_fault_31_a_wrapped_state_dict_round_trips() -> None:
    policy, other = make(), make(seed=9)
    train(policy, 2)
    other.load_state_dict(policy.state_dict(), strict=True)
    assert other.spatial_forcing.steps == 2
    assert train(policy, 2, start=5) == train(other, 2, start=5)
    broken = policy.state_dict()
    del broken["spatial_forcing.pairs.0.projector.fc1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1\.weight"):
        other.load_state_dict(broken, strict=True)


def test_only_wrapped_policies_are_exported(tmp_path: Path) -> None:
    with pytest.raises(WrapError, match="not wrapped"):
        SpatialForcing.export(make(wrap=False), tmp_path)


def test_without_save_pretrained_export_says_what_to_call(tmp_path: Path) -> None:
    plain: Any = TinyPolicy()
    policy: Any = SpatialForcing.wrap(plain, "geometry", adapter=TinyAdapter(plain))
    train(policy, 2)
    with pytest.raises(WrapError, match="TinyPolicy has no save_pretrained") as caught:
        SpatialForcing.export(policy, tmp_path)
    assert "policy.spatial_forcing.save(directory)" in caught.value.remedy
    assert "SpatialForcing.unwrap(policy).state_dict()" in caught.value.remedy
    # What the error says works, and nothing has changed before it.
    assert policy.spatial_forcing.save(tmp_path)
    state = SpatialForcing.unwrap(policy).state_dict()
    assert not [key for key in state if key.startswith("spatial_forcing")]
    again: Any = TinyPolicy()
    again.load_state_dict(state)
    assert SpatialForcing.from_pretrained(again, tmp_path, adapter=TinyAdapter(again)).spatial_forcing.steps == 2


def test_fault_31_32_loss_path_and_accumulation_are_saved(tmp_path: Path) -> None:
    """Without it the schedule, which counts groups of batches, would jump ahead at the resumption."""
    policy = make(attach_loss="return", schedule="stop:5")
    policy.spatial_forcing.grad_accumulation = 4  # as a trainer's callback does
    train(policy, 9)
    policy.save_pretrained(tmp_path)

    def resumed(**changes: Any) -> Any:
        plain = make(wrap=False)
        return SpatialForcing.from_pretrained(plain, tmp_path, adapter=TinyAdapter(plain), **changes).spatial_forcing

    same = resumed()
    assert (same.loss_paths.attach_loss, same.grad_accumulation, same.step, same.steps) == ("return", 4, 2, 9)
    other = resumed(grad_accumulation=2, attach_loss="auto")
    assert (other.loss_paths.attach_loss, other.grad_accumulation, other.step, other.steps) == ("auto", 2, 2, 4)


def test_accumulation_of_no_batches_is_an_error() -> None:
    policy = make()
    with pytest.raises(ConfigError, match="grad_accumulation"):
        policy.spatial_forcing.grad_accumulation = 0
    with pytest.raises(ConfigError, match="grad_accumulation"):
        make(grad_accumulation=0)
