"""The gradients are those of the action loss plus the weighted alignment loss, however a script makes its loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from sfkit.errors import ConfigError
from sfkit.training.taps import Residual

WEIGHT, LAYER = 0.7, 2
OUTSIDE = ("oft-l1", "oft-diffusion")


def explicit(it, batch, handle, **changes):
    """Loss of the script, and mean alignment loss, made by hand on a policy that is not wrapped."""
    plain, heads, hidden = it.policy(**changes), it.heads(), []
    layer = plain.language_model.model.layers[LAYER]
    layer.input_layernorm.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    loss = it.loss(plain, batch, heads)
    b, v = batch["images"].shape[:2]
    tokens = hidden[0][:, 1 : 1 + 16 * v].float()
    pooled = F.adaptive_avg_pool2d(batch["images"].flatten(0, 1), 4).permute(0, 2, 3, 1)
    target = handle.runners[0]._model(pooled).reshape(b, 16 * v, -1) * 3
    distance = 1 - F.cosine_similarity(handle.pairs[0].projector(tokens, None), target, dim=-1)
    return plain, heads, loss, distance.mean()


def gradients(*modules):
    """By name, of the modules of a script; without the projector."""
    found = {}
    for index, module in enumerate(modules):
        if module is not None:
            named = [(name, p.grad) for name, p in module.named_parameters() if "spatial_forcing" not in name]
            found |= {f"{index}.{name}": grad.clone() for name, grad in named if grad is not None}
    return found


def error(found, wanted):
    """Relative, of all of them together."""
    assert found.keys() == wanted.keys()
    apart = torch.stack([(found[name] - wanted[name]).norm() for name in wanted]).norm()
    return float(apart / torch.stack([value.norm() for value in wanted.values()]).norm())


def compare(it, batches, policy, heads, scale, record):
    """What was trained against ``scale`` times the explicit sum over the batches, and how much alignment matters."""
    handle = policy.spatial_forcing
    assert all(p.grad is not None for p in handle.pairs.parameters()), "alignment joined nothing that was read"
    mine = gradients(policy, heads)
    own = {name: p.grad.clone() for name, p in handle.pairs.named_parameters()}
    handle.pairs.zero_grad()
    plain, without, wanted = None, {}, {}
    for batch in batches:
        plain, others, loss, aux = explicit(it, batch, handle)
        named = [
            (f"{i}.{n}", p) for i, m in enumerate((plain, others)) if m is not None for n, p in m.named_parameters()
        ]
        names, parameters = zip(*[(name, p) for name, p in named if p.requires_grad], strict=True)
        alone = torch.autograd.grad(scale * loss, parameters, retain_graph=True, allow_unused=True)
        (scale * (loss + WEIGHT * aux)).backward()
        new = gradients(plain, others)
        bare = {n: torch.zeros_like(new[n]) if g is None else g for n, g in zip(names, alone, strict=True) if n in new}
        wanted = {name: wanted.get(name, 0) + value for name, value in new.items()}
        without = {name: without.get(name, 0) + value for name, value in bare.items()}
    figures = {
        "effect": error(without, wanted),
        "error": error(mine, wanted),
        "projector": error(own, {name: p.grad for name, p in handle.pairs.named_parameters()}),
    }
    for name, value in figures.items():
        record(name, value)
    assert figures["effect"] > 1e-3, "what is matched must be there to be matched"
    assert figures["error"] < 1e-5
    assert figures["projector"] < 1e-5


@pytest.mark.filterwarnings("ignore:.*could not verify the gradient path:sfkit.SfkitWarning")
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
def test_fault_03_04_13_the_scripts_loss_trains_the_explicit_sum(
    loop, checkpointing, script, wrap, record_property
) -> None:
    it = script(loop, images=1 if loop == "openvla" else 2)
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER), it.heads()
    if checkpointing is not None:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    it.loss(policy, it.batch(), heads).backward()
    assert policy.spatial_forcing.taps.at[Residual(LAYER)].fired == 1, "nothing is caught when blocks are run again"
    compare(it, [it.batch()], policy, heads, 1, record_property)


def test_fault_14_accumulated_batches_count_as_one(loop, script, wrap, record_property) -> None:
    it = script(loop, images=1)
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER, grad_accumulation=3), it.heads()
    batches = [it.batch(seed) for seed in range(3)]
    for batch in batches:
        (it.loss(policy, batch, heads) / 3).backward()
    compare(it, batches, policy, heads, 1 / 3, record_property)


@pytest.mark.parametrize("images", [1, 3])
def test_fault_14_what_is_added_follows_every_factor(loop, images, script, wrap, record_property) -> None:
    if loop == "openvla" and images > 1:
        pytest.skip("OpenVLA takes one image")
    it = script(loop, images=images, film=loop != "openvla")
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER), it.heads()
    loss = it.loss(policy, it.batch(), heads)
    if it.oft:
        loss = policy.spatial_forcing.add(loss)
    (loss * 1024 / 3).backward()
    compare(it, [it.batch()], policy, heads, 1024 / 3, record_property)


@pytest.mark.parametrize("loop", OUTSIDE)
def test_fault_14_the_scaler_of_the_loop_is_followed(loop, script, wrap, record_property) -> None:
    class Scaler:
        def scale(self, loss):
            return loss * 256

    it = script(loop, images=2)
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER), it.heads()
    policy.spatial_forcing.scaler = Scaler()
    (it.loss(policy, it.batch(), heads) * 256).backward()
    compare(it, [it.batch()], policy, heads, 256, record_property)


def test_fault_55_two_batches_before_one_backward(loop, script, wrap, record_property) -> None:
    it = script(loop, images=1)
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER), it.heads()
    batches = [it.batch(seed) for seed in range(2)]
    sum(it.loss(policy, batch, heads) for batch in batches).backward()
    compare(it, batches, policy, heads, 1, record_property)


def test_sampling_between_forward_and_backward_changes_nothing(loop, script, wrap, record_property) -> None:
    # OFT's loop does so now and then, to log the error of what diffusion would have done.
    it = script(loop, images=1)
    policy, heads = wrap(it.policy(), weight=WEIGHT, student_layer=LAYER), it.heads()
    loss = it.loss(policy, it.batch(), heads)
    with torch.no_grad():
        it.loss(policy, it.batch(1), heads)
    loss.backward()
    assert policy.spatial_forcing.status().teacher_runs == 1
    compare(it, [it.batch()], policy, heads, 1, record_property)


def test_fault_13_the_loss_that_oft_does_not_read_is_refused(script, wrap) -> None:
    with pytest.raises(ConfigError, match="attach_loss='return' would train nothing"):
        wrap(script("oft-l1").policy(), attach_loss="return")


def test_forward_called_by_its_name_aligns(loop, script, wrap) -> None:
    it = script(loop)
    policy = wrap(it.policy())
    it.loss(policy.forward, it.batch())
    assert policy.spatial_forcing.status().teacher_runs == 1


def test_evaluation_is_bit_identical(loop, script, wrap) -> None:
    it = script(loop)
    plain, policy = it.policy().eval(), wrap(it.policy()).eval()
    with torch.no_grad():
        assert torch.equal(it.loss(plain, it.batch()), it.loss(policy, it.batch()))
    assert policy.spatial_forcing.status().teacher_runs == 0


def test_fault_52_bfloat16_keeps_projector_and_images(loop, script, wrap) -> None:
    it = script(loop)
    policy, heads, seen = wrap(it.policy(), weight=WEIGHT), it.heads(), []
    policy.to(torch.bfloat16)
    if heads is not None:
        heads.to(torch.bfloat16)
    host = policy.spatial_forcing.runners[0]
    real = host.features
    host.features = lambda views, *rest, **more: seen.append(views.images) or real(views, *rest, **more)
    batch = it.batch()
    floats = ("pixel_values", "actions", "proprio")
    it.loss(policy, {**batch, **{key: batch[key].to(torch.bfloat16) for key in floats}}, heads).backward()
    assert {p.dtype for p in policy.spatial_forcing.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in policy.spatial_forcing.parameters()} == {torch.float32}
    assert seen[0].dtype == torch.float32
    assert float((seen[0] - batch["images"]).abs().max()) < 0.26 / 255
