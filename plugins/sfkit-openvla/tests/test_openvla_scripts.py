"""What upstream's scripts do around the loss: LoRA, FiLM, DDP, an optimizer, saving, merging."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sfkit import SpatialForcing
from sfkit.errors import GradientError, WrapError

CASES = [
    pytest.param("openvla", 1, False, id="openvla"),
    pytest.param("oft-l1", 2, True, id="oft-l1-film"),
    pytest.param("oft-diffusion", 3, False, id="oft-diffusion"),
    pytest.param("oft-discrete", 1, False, id="oft-discrete"),
]


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def lora(it, policy):
    """As upstream: on every linear layer, then FiLM around the vision backbone."""
    peft = pytest.importorskip("peft")
    film, it.film = it.film, False
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules="all-linear", init_lora_weights="gaussian")
    model = peft.get_peft_model(policy, config)
    it.film = film
    if film:
        it.add_film(model)
    return model.train()


def bare(it):
    """The policy before FiLM."""
    film, it.film = it.film, False
    policy = it.policy()
    it.film = film
    return policy


def train(it, model, heads, *, steps=2, accumulate=2):
    """Upstream's loop; returns what an optimizer has moved."""
    parameters = [p for module in (model, heads) if module is not None for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for index in range(steps * accumulate):
        (it.loss(model, it.batch(index), heads) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return [bool((old != new).any()) for old, new in zip(before, parameters, strict=True)], parameters


@pytest.mark.parametrize(("loop", "images", "film"), CASES)
def test_fault_12_lora_film_ddp_and_an_optimizer(loop, images, film, script, wrap, alone) -> None:
    it = script(loop, images=images, film=film)
    model = wrap(lora(it, bare(it)), grad_accumulation=2)
    ddp = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    heads = it.heads()
    moved, parameters = train(it, ddp, heads)
    handle = SpatialForcing.of(ddp)
    projector = {id(p) for p in handle.parameters()}
    assert all(m for m, p in zip(moved, parameters, strict=True) if id(p) in projector)
    status = handle.status()
    assert status.reaches_policy
    assert status.projector_moved
    assert status.teacher_runs == handle.steps == 4
    assert handle.adapter.num_views == images


# PEFT's, and upstream's own: LoRA is put on the output layer too.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_saving_merging_and_resuming_after_lora(script, wrap, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    it = script("openvla")
    model = wrap(lora(it, bare(it)))
    train(it, model, None)
    model.save_pretrained(tmp_path)
    adapter = {p.name for p in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "spatial_forcing"} <= adapter
    from safetensors.torch import load_file

    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if "spatial_forcing" in key]
    merged = peft.PeftModel.from_pretrained(bare(it), tmp_path).merge_and_unload().eval()
    with torch.no_grad():
        torch.testing.assert_close(it.loss(merged, it.batch()), it.loss(model.eval(), it.batch()))
    again = peft.PeftModel.from_pretrained(bare(it), tmp_path, is_trainable=True)
    teacher = model.spatial_forcing.runners[0].teacher  # of this test alone, and so in no registry
    resumed = SpatialForcing.from_pretrained(again, tmp_path, pairs=[(3, teacher)])
    old, new = (m.spatial_forcing.pairs.state_dict() for m in (model, resumed))
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert resumed.spatial_forcing.steps == model.spatial_forcing.steps == 4


def test_a_frozen_backbone_says_what_to_unfreeze(script, wrap) -> None:
    it = script("openvla")
    policy = it.policy()
    policy.requires_grad_(False)
    policy.language_model.model.layers[3].requires_grad_(True)
    wrap(policy, student_layer=2)
    with pytest.raises(GradientError, match='target_modules="all-linear"'):
        it.loss(policy, it.batch())


def test_after_ddp_it_is_too_late(script, wrap, alone) -> None:
    ddp = DistributedDataParallel(script("openvla").policy(), find_unused_parameters=True)
    with pytest.raises(WrapError, match="already inside DDP"):
        wrap(ddp)


@pytest.mark.parametrize("loop", ["openvla", "oft-l1"])
def test_forward_keeps_its_signature(loop, script, wrap) -> None:
    policy = script(loop).policy()
    wanted = inspect.signature(policy.forward)
    assert inspect.signature(wrap(policy).forward) == wanted
    assert "pixel_values" in wanted.parameters


@pytest.mark.filterwarnings("default")  # dynamo's own
def test_a_compiled_policy_aligns_at_every_step(script, wrap) -> None:
    it = script("openvla")
    if it.real:
        pytest.skip("timm's forward does not compile, wrapped or not")
    eager, policy = wrap(it.policy()), wrap(it.policy())
    compiled = torch.compile(policy, backend="aot_eager")
    for seed in range(3):
        losses = [float(it.loss(model, it.batch(seed)).detach()) for model in (eager, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert policy.spatial_forcing.status().teacher_runs == 3


def test_the_hubs_code_is_recognized(checkout, script, wrap, tmp_path, monkeypatch) -> None:
    it = script("oft-discrete" if checkout.is_oft else "openvla")
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    source = Path(checkout.modeling.__file__).parent
    for name in ("modeling_prismatic.py", "configuration_prismatic.py"):
        shutil.copy(source / name, tmp_path)
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    cls = dynamic.get_class_from_dynamic_module("modeling_prismatic.OpenVLAForActionPrediction", str(tmp_path))
    assert cls.__module__.startswith("transformers_modules.")
    policy = wrap(it.policy(cls=cls))
    assert type(policy).__module__ == cls.__module__
    it.loss(policy.train(), it.batch())
    assert policy.spatial_forcing.status().teacher_runs == 1


def test_the_stand_in_attends_both_ways_as_the_fork_does(standins) -> None:
    for both_ways in (False, True):
        policy = standins.tiny_oft(both_ways=both_ways).eval()
        embeddings = torch.randn(1, 6, 32)
        changed = embeddings.clone()
        changed[0, -1] += 1
        with torch.no_grad():
            first, second = (
                policy.language_model.model(inputs_embeds=e).last_hidden_state for e in (embeddings, changed)
            )
        assert bool((first[0, 0] != second[0, 0]).any()) is both_ways
