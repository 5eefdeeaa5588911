"""openpi's own way of saving and loading, and a checkpoint for those without sfkit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model, save_model
from sfkit_openpi import export_checkpoint
from typer.testing import CliRunner

from sfkit.errors import CheckpointError, SfkitWarning


def saved(policy, folder):
    """A checkpoint folder as ``save_checkpoint`` of openpi's train_pytorch.py writes it."""
    (folder / "assets" / "robot").mkdir(parents=True)
    save_model(policy, folder / "model.safetensors")
    torch.save({"state": {}}, folder / "optimizer.pt")
    torch.save({"global_step": 7}, folder / "metadata.pt")
    (folder / "assets" / "robot" / "norm_stats.json").write_text("{}")
    return folder


def test_a_run_is_resumed_as_openpi_does_it(setup, wrap, tmp_path) -> None:
    policy = wrap(setup.build())
    policy(*setup.batch()).mean().backward()
    torch.optim.SGD(policy.parameters(), 0.1).step()
    folder = saved(policy, tmp_path / "7")
    again = wrap(setup.build(), seed=1)
    load_model(again, folder / "model.safetensors")
    assert again.spatial_forcing.steps == 1
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_pretrained_weights_may_be_loaded_after_the_wrap(setup, wrap, tmp_path) -> None:
    folder = saved(setup.build(), tmp_path / "base")
    policy = wrap(setup.build())
    with torch.no_grad():
        policy.action_in_proj.weight.zero_()
    with pytest.warns(SfkitWarning, match="no projector"):
        load_model(policy, folder / "model.safetensors")
    assert torch.equal(policy.action_in_proj.weight, setup.build().action_in_proj.weight)


def test_an_exported_checkpoint_is_that_of_a_plain_run(setup, wrap, tmp_path) -> None:
    plain = saved(setup.build(), tmp_path / "plain")
    aligned = saved(wrap(setup.build()), tmp_path / "aligned")
    with pytest.raises(RuntimeError, match="spatial_forcing"):
        load_model(setup.build(), aligned / "model.safetensors")
    export_checkpoint(aligned, tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    load_model(setup.build(), tmp_path / "export" / "model.safetensors")
    files = {path.relative_to(tmp_path / "export").as_posix() for path in (tmp_path / "export").rglob("*")}
    assert files == {"model.safetensors", "metadata.pt", "assets", "assets/robot", "assets/robot/norm_stats.json"}


def test_the_command(standin, wrap, tmp_path) -> None:
    from sfkit.cli import build_app

    aligned = saved(wrap(standin.build()), tmp_path / "aligned")
    done = CliRunner().invoke(build_app(), ["openpi-export", str(aligned), str(tmp_path / "plain")])
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output
    load_model(standin.build(), tmp_path / "plain" / "model.safetensors")


def test_what_cannot_be_exported_is_explained(standin, wrap, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        export_checkpoint(tmp_path, tmp_path / "new")
    plain = saved(standin.build(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="holds nothing of sfkit"):
        export_checkpoint(plain, tmp_path / "new")
    aligned = saved(wrap(standin.build()), tmp_path / "aligned")
    with pytest.raises(CheckpointError, match="exists already"):
        export_checkpoint(aligned, plain)
