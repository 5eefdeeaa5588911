"""LoRA first, wrap second: with real PEFT on real SmolVLA."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from sfkit_lerobot.testing import tiny_lerobot_batch

from sfkit.errors import GradientError

BACKBONE = r".*text_model\.layers\.\d+\.self_attn\.(q|v)_proj"


def _lora(policy, targets: str = BACKBONE):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(policy, LoraConfig(r=2, target_modules=targets))


def _step(policy, batch):
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss, info = policy(dict(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return info


def test_fault_08_the_projector_trains_beside_lora(build, wrap) -> None:
    policy = wrap(_lora(build("smolvla")))
    projector = next(policy.spatial_forcing.pairs.parameters())
    before = projector.detach().clone()
    batch = tiny_lerobot_batch(policy.get_base_model(), geometry=True)
    info = _step(policy, batch)
    assert info["sf_loss"] > 0
    assert policy.spatial_forcing.adapter.name == "smolvla"
    assert not torch.equal(projector, before)
    moved = [name for name, p in policy.named_parameters() if "lora_B" in name and bool(p.ne(0).any())]
    assert any("text_model.layers.0" in name for name in moved)


def test_adapter_file_and_merged_policy_have_no_projector(build, wrap, tmp_path) -> None:
    policy = wrap(_lora(build("smolvla")))
    base = policy.get_base_model()
    batch = tiny_lerobot_batch(base, geometry=True)
    _step(policy, batch)
    policy.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert keys
    assert not [key for key in keys if "spatial_forcing" in key or "projector" in key]
    assert (tmp_path / "spatial_forcing/projector.safetensors").is_file()

    policy.eval()
    torch.manual_seed(2)
    expected = policy.select_action(dict(batch))
    merged = policy.merge_and_unload()
    assert type(merged).__name__ == "SmolVLAPolicy"
    assert not hasattr(merged, "spatial_forcing")
    assert not [key for key in merged.state_dict() if "lora" in key or "spatial_forcing" in key]
    merged.reset()
    torch.manual_seed(2)
    torch.testing.assert_close(merged.select_action(dict(batch)), expected, atol=1e-5, rtol=1e-4)


def test_fault_07_lerobots_lora_targets_are_an_error(build, wrap) -> None:
    policy = build("smolvla")
    policy = wrap(_lora(policy, policy._get_default_peft_targets()["target_modules"]))
    with pytest.raises(GradientError, match="LoRA"):
        policy(tiny_lerobot_batch(policy.get_base_model(), geometry=True))


def test_fault_08_lora_after_wrap_is_an_error(build, wrap) -> None:
    policy = wrap(build("smolvla"))
    outer = _lora(policy)
    with pytest.raises(GradientError, match="apply LoRA first"):
        outer(tiny_lerobot_batch(policy, geometry=True))
