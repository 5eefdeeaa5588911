"""LoRA first, wrap second, with the real peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sfkit import SpatialForcing
from sfkit.errors import GradientError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

peft = pytest.importorskip("peft")


def lora(policy: TinyPolicy, targets: Any = r"blocks\.\d+\.(qkv|out)") -> Any:
    return peft.get_peft_model(policy, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def test_the_peft_model_is_wrapped_and_trains(tiny: Callable[..., TinyPolicy], tmp_path: Path) -> None:
    base = tiny()
    model = lora(base)
    policy = SpatialForcing.wrap(model, PatchTeacher(), student_layer=2, adapter=TinyAdapter(base))
    assert policy is model
    assert isinstance(policy, peft.PeftModel)
    before = policy.spatial_forcing.pairs[0].projector.fc1.weight.clone()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], 1e-2)
    for seed in range(3):
        loss, info = policy(tiny_batch(seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert info["sf_loss"] > 0
    assert policy.spatial_forcing.status().projector_moved is True
    assert not torch.equal(before, policy.spatial_forcing.pairs[0].projector.fc1.weight)
    policy.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert keys
    assert not [key for key in keys if "spatial_forcing" in key or "projector" in key]
    assert (tmp_path / "spatial_forcing" / "projector.safetensors").is_file()


def test_merging_after_unwrap_gives_the_plain_policy(tiny: Callable[..., TinyPolicy]) -> None:
    base = tiny()
    policy = SpatialForcing.wrap(lora(base), PatchTeacher(), student_layer=2, adapter=TinyAdapter(base))
    with torch.no_grad():
        wanted = policy.eval()(tiny_batch())[0]
    merged = policy.merge_and_unload()
    assert type(merged) is TinyPolicy
    assert not hasattr(merged, "spatial_forcing")
    with torch.no_grad():
        assert_rounded(merged.eval()(tiny_batch())[0], wanted)
    SpatialForcing.unwrap(policy)
    assert not merged.blocks[2].input_layernorm._forward_pre_hooks


def test_fault_07_lora_that_misses_the_visual_path_is_an_error(tiny: Callable[..., TinyPolicy]) -> None:
    base = tiny()
    policy = SpatialForcing.wrap(lora(base, ["head"]), PatchTeacher(), student_layer=2, adapter=TinyAdapter(base))
    with pytest.raises(GradientError, match="reaches no trainable parameter"):
        policy(tiny_batch())


def test_fault_08_lora_after_the_wrap_is_found_out(tiny: Callable[..., TinyPolicy]) -> None:
    base = tiny()
    policy = lora(SpatialForcing.wrap(base, PatchTeacher(), student_layer=2, adapter=TinyAdapter(base)))
    with pytest.raises(GradientError, match="apply LoRA first"):
        policy(tiny_batch())


@pytest.mark.parametrize("targets", ["all-linear", r".*fc1", r".*(qkv|fc2)"])
def test_fault_08_lora_on_a_part_of_the_projector_is_found_out(tiny: Callable[..., TinyPolicy], targets: str) -> None:
    base = tiny()
    model = lora(SpatialForcing.wrap(base, PatchTeacher(), student_layer=2, adapter=TinyAdapter(base)), targets)
    for parameter in base.spatial_forcing.parameters():  # peft freezes all; a loop that wants the projector unfreezes
        parameter.requires_grad_(True)
    for name, parameter in base.spatial_forcing.named_parameters():
        parameter.requires_grad_("base_layer" not in name)
    with pytest.raises(GradientError, match=r"A part of the projector was frozen after the wrap \(.*base_layer"):
        model(tiny_batch())
