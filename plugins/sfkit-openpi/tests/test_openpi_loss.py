"""openpi returns a loss for each element; however it is reduced, the gradient is that of the explicit sum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from tiny_openpi import CAMERAS

from sfkit.errors import SfkitWarning

WEIGHT = 0.7
REDUCTIONS = {
    "mean": (lambda losses: losses.mean(), lambda aux: aux.mean()),
    "weighted mean": (
        lambda losses: (losses * (w := torch.arange(1.0, 5.0))).sum() / (w.sum() * losses.shape[0] * losses.shape[1]),
        lambda aux: aux.mean(),
    ),
    "weighted samples": (
        lambda losses: (losses.mean((1, 2)) * torch.tensor([0.2, 0.8])).sum(),
        lambda aux: (aux * torch.tensor([0.2, 0.8])).sum(),
    ),
    "scaled": (lambda losses: losses.mean() * 1024 / 3, lambda aux: aux.mean() * 1024 / 3),
}


def explicit(setup, batch, handle):
    """Losses of an unwrapped policy, and the alignment loss of each sample, made by hand without checkpointing.

    In eval mode openpi checkpoints nothing, and augments all the same.
    """
    plain, hidden, pixels = setup.build().eval(), [], []
    inner = plain.paligemma_with_expert.paligemma.model
    inner.language_model.layers[2].input_layernorm.register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    inner.vision_tower.register_forward_pre_hook(lambda m, args: pixels.append(args[0]))
    torch.manual_seed(5)
    losses = plain(*batch)
    side = setup.size // 14
    tokens = hidden[0][:, : 3 * side**2].reshape(2, 3, side, side, -1).float()
    pooled = F.adaptive_avg_pool2d(torch.stack(pixels, 1).flatten(0, 1) / 2 + 0.5, (side, side)).permute(0, 2, 3, 1)
    target = handle.runners[0]._model(pooled).reshape(2, 3, side, side, -1) * 3
    distance = 1 - F.cosine_similarity(handle.pairs[0].projector(tokens, None), target, dim=-1)
    return plain, losses, distance[:, :2].flatten(1).mean(1)  # the third camera is absent


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["forced", "twice"])
@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_gradients_are_those_of_the_explicit_sum(reduction, checkpointing, setup, wrap, record_property) -> None:
    reduce, reduce_aux = REDUCTIONS[reduction]
    batch = setup.batch(missing=[CAMERAS[2]])
    policy = wrap(setup.build(checkpointing=checkpointing), weight=WEIGHT)
    handle = policy.spatial_forcing
    torch.manual_seed(5)
    losses = policy(*batch)
    assert losses.shape == (2, 3, 4)
    reduce(losses).backward()
    mine = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    heads = [p.grad.clone() for p in handle.pairs.parameters()]
    handle.pairs.zero_grad()

    plain, alone, aux = explicit(setup, batch, handle)
    torch.testing.assert_close(losses.mean(), alone.mean() + WEIGHT * aux.mean(), rtol=1e-5, atol=0)
    actions = torch.autograd.grad(reduce(alone), list(plain.parameters()), retain_graph=True, allow_unused=True)
    (reduce(alone) + WEIGHT * reduce_aux(aux)).backward()
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert {name for name in mine if not name.startswith("spatial_forcing")} == set(wanted)

    flat = torch.cat([value.flatten() for value in wanted.values()])
    error = relative(torch.cat([mine[name].flatten() for name in wanted]), flat)
    without = dict(zip((name for name, _ in plain.named_parameters()), actions, strict=True))
    nothing = [torch.zeros_like(g) if without[name] is None else without[name] for name, g in wanted.items()]
    effect = relative(torch.cat([value.flatten() for value in nothing]), flat)
    head = relative(
        torch.cat([g.flatten() for g in heads]), torch.cat([p.grad.flatten() for p in handle.pairs.parameters()])
    )
    record_property("error", error)
    record_property("effect", effect)
    record_property("projector", head)
    assert effect > 1e-3, "what is matched must be there to be matched"
    assert error < 1e-5
    assert head < 1e-5


def test_the_losses_are_distinguished(setup, wrap) -> None:
    policy, batch = wrap(setup.build(), weight=WEIGHT), setup.batch()
    torch.manual_seed(5)
    losses = policy(*batch)
    metrics = policy.spatial_forcing.metrics()
    torch.manual_seed(5)
    assert metrics["action_loss"] == pytest.approx(setup.build()(*batch).mean().item(), rel=1e-6)
    assert losses.mean().item() == pytest.approx(metrics["action_loss"] + WEIGHT * metrics["sf_loss"], rel=1e-5)


def test_fault_15_a_sum_over_elements_is_reported(standin, wrap) -> None:
    policy, batch = wrap(standin.build()), standin.batch()
    losses = policy(*batch)
    with pytest.warns(SfkitWarning, match=r"the 24 values of the policy's loss are summed and not averaged"):
        losses.sum().backward()
    policy(*batch).sum().backward()  # said once


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_fault_15_other_reductions_are_taken_as_they_are(reduction, standin, wrap) -> None:
    policy = wrap(standin.build())
    reduce, _ = REDUCTIONS[reduction]
    reduce(policy(*standin.batch())).backward()  # a warning is an error here
