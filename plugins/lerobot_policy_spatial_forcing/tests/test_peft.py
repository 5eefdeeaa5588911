"""``--peft.method_type=LORA``: adapters that alignment trains, saved and resumed with the projector."""

from __future__ import annotations

import json

import pytest
import torch
from lerobot_policy_spatial_forcing.lora import with_projector
from peft import PeftModel
from safetensors.torch import load_file

from sfkit.errors import GradientError

_SEEN = ("loss", "action_loss", "sf_loss", "sf_cosine", "grad_norm")
_EXPERT = r"--peft.target_modules=model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj"


@pytest.fixture(scope="module")
def adapted(lerobot_train, common, aligned, plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    flags = [f"--policy.pretrained_path={plain}", "--peft.method_type=LORA", "--peft.r=4"]
    run = lerobot_train(*common, *aligned, *flags, "--steps=4", "--save_freq=2", f"--output_dir={folder}")
    return run, folder


def test_fault_07_default_targets_reach_blocks_before_the_tap(adapted) -> None:
    run, folder = adapted
    assert isinstance(run.policy, PeftModel)
    adapter = load_file(folder / "checkpoints/last/pretrained_model/adapter_model.safetensors")
    blocks = {key.split("text_model.layers.")[1][0] for key in adapter if "text_model.layers." in key}
    assert blocks == {"0", "1"}
    moved = [key for key, value in adapter.items() if "text_model" in key and "lora_B" in key and bool(value.any())]
    assert moved
    assert any("lm_expert" in key for key in adapter)


def test_fault_07_expert_only_targets_are_refused(lerobot_train, common, aligned, plain, tmp_path) -> None:
    flags = [f"--policy.pretrained_path={plain}", "--peft.method_type=LORA", _EXPERT]
    with pytest.raises(GradientError, match=r"nowhere before student layer 2.*\n.*text_model.*layers.*\(0\|1\)"):
        lerobot_train(*common, *aligned, *flags, "--steps=1", f"--output_dir={tmp_path / 'run'}")


def test_fault_08_the_projector_is_trained_and_saved(adapted) -> None:
    run, folder = adapted
    projector = list(run.policy.spatial_forcing.pairs.parameters())
    assert all(parameter.requires_grad for parameter in projector)
    known = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in projector} <= known
    model = folder / "checkpoints/last/pretrained_model"
    assert (model / "spatial_forcing/projector.safetensors").is_file()
    assert not [key for key in load_file(model / "adapter_model.safetensors") if "projector" in key]
    assert json.loads((model / "config.json").read_text())["type"] == "smolvla"


def test_a_loaded_adapter_is_wrapped_before_training(adapted, make) -> None:
    folder = adapted[1] / "checkpoints/last/pretrained_model"
    policy = make("sf_smolvla", pretrained_path=folder, use_peft=True)
    assert isinstance(policy, PeftModel)
    with pytest.raises(GradientError, match=r"never wrapped.*\n.*get_optim_params"):
        policy.train()
    known = {id(parameter) for parameter in policy.get_optim_params()}
    assert {id(parameter) for parameter in policy.spatial_forcing.pairs.parameters()} <= known
    assert policy.train().training
    assert "spatial_forcing" not in dict(policy.get_base_model().named_children())


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_fault_07_pi0_and_pi05_get_targets_before_the_tap_too(kind, make, tiny_pi) -> None:
    policy = make(f"sf_{kind}", pretrained_path=tiny_pi(kind))
    outer = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    trained = [name for name, parameter in outer.named_parameters() if parameter.requires_grad]
    blocks = {name.split("language_model.layers.")[1][0] for name in trained if "language_model.layers." in name}
    assert blocks == {"0", "1"}
    assert any("gemma_expert" in name for name in trained)
    assert any("spatial_forcing.pairs" in name for name in trained)


def test_the_projector_joins_parameters_of_every_form() -> None:
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(2))
    projector = torch.nn.Parameter(torch.zeros(3))
    give = lambda: iter([projector])  # noqa: E731
    for form in ([one, two], [("a", one), ("b", two)], [{"params": [one]}, {"params": [two], "lr": 1.0}]):
        joined = with_projector(form, give)
        optimizer = torch.optim.SGD(joined, lr=0.1)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert known == {id(one), id(two), id(projector)}
        assert with_projector(joined, give) == joined
    by_name = with_projector({"actor": [one], "critic": [two]}, give)
    assert by_name["spatial_forcing"] == [projector]
    assert with_projector(by_name, give) == by_name


def test_fault_31_adapter_and_projector_resume(adapted, resume) -> None:
    run, folder = adapted
    resumed = resume(folder / "checkpoints" / "000002")
    assert isinstance(resumed.policy, PeftModel)
    for before, after in zip(run.curve[2:], resumed.curve, strict=True):
        assert {key: after[key] for key in _SEEN} == pytest.approx({key: before[key] for key in _SEEN}, rel=1e-4)
    assert resumed.policy.spatial_forcing.steps == 4
