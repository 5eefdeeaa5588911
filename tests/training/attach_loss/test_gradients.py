"""Gradients of every kind of training loop, against the alignment loss added by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sfkit import SpatialForcing
from sfkit.testing.tiny import OutsidePolicy, TinyAdapter, TinyPolicy, loop_loss

Make, Batch = Callable[..., OutsidePolicy], Callable[..., dict[str, torch.Tensor]]
Gradients, Same = Callable[..., dict[str, torch.Tensor]], Callable[..., None]
#: How the alignment loss may get into the loop's, with what the loop must say for it.
ATTACH = ("auto", "backward", "manual")


class Scaler:
    """What a loop uses of ``GradScaler``; the real one, for CPUs, is not in every torch."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * 1024.0


@pytest.fixture(params=ATTACH)
def attach_loss(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def joined(policy: OutsidePolicy, batch: dict[str, torch.Tensor], attach_loss: str) -> torch.Tensor:
    """The loop's loss, in the way that ``join`` asks for."""
    loss = loop_loss(policy(batch), batch)
    return policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss


@pytest.fixture
def reference(by_hand) -> Callable[..., torch.Tensor]:
    """``reference(policy, batch)``: the loop's loss with the alignment loss added by hand."""

    def reference(policy: OutsidePolicy, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        output, alignment = by_hand(policy, batch)
        return loop_loss(output, batch) + alignment

    return reference


@pytest.mark.filterwarnings("ignore:sfkit could not verify the gradient path")
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant", "reentrant"])
def test_fault_13_plain(
    attach_loss, checkpointing, reference, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    policy, other = make(attach_loss=attach_loss, policy={"checkpointing": checkpointing}), make()
    joined(policy, batch(), attach_loss).backward()
    reference(other, batch()).backward()
    assert any("projector" in name for name in gradients(policy))
    same(gradients(policy), gradients(other))


def test_fault_14_scaled(attach_loss, reference, make: Make, batch: Batch, gradients: Gradients, same: Same) -> None:
    policy, other, scaler = make(attach_loss=attach_loss), make(), Scaler()
    if attach_loss != "manual":
        policy.spatial_forcing.scaler = scaler
    scaler.scale(joined(policy, batch(), attach_loss)).backward()
    scaler.scale(reference(other, batch())).backward()
    same(gradients(policy), gradients(other))


def test_fault_14_accumulated(
    attach_loss, reference, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    policy, other = make(attach_loss=attach_loss, grad_accumulation=None if attach_loss == "manual" else 3), make()
    for seed in range(3):
        (joined(policy, batch(seed), attach_loss) / 3).backward()
        (reference(other, batch(seed)) / 3).backward()
    same(gradients(policy), gradients(other))


def test_fault_55_each_forward_counts_once_however_often_a_loop_goes_backward(
    attach_loss, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """The alignment counts once for each forward, and a look does not use it up."""
    policy, other = make(attach_loss=attach_loss), make()
    output = policy(batch())
    loss = loop_loss(output, batch())
    loss = policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss
    (looked,) = torch.autograd.grad(loss, policy.embed.weight, retain_graph=True)
    loss.backward(retain_graph=True)
    torch.testing.assert_close(looked, policy.embed.weight.grad)
    output["actions"][0].square().sum().backward()
    plain, alignment = by_hand(other, batch())
    (loop_loss(plain, batch()) + alignment + plain["actions"][0].square().sum()).backward()
    same(gradients(policy), gradients(other))


def test_fault_55_several_forwards_before_one_backward(
    attach_loss, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """As with two losses, or in reinforcement learning."""
    policy, other = make(attach_loss=attach_loss), make()
    one, two = (loop_loss(policy(batch(seed)), batch(seed)) for seed in (1, 2))
    loss = one + 3 * two
    (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward()
    (one, first), (two, second) = (by_hand(other, batch(seed)) for seed in (1, 2))
    (loop_loss(one, batch(1)) + 3 * loop_loss(two, batch(2)) + first + second).backward()
    same(gradients(policy), gradients(other))


def test_fault_55_a_forward_that_is_fed_what_an_earlier_one_returned(
    attach_loss, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """As in a rollout: the earlier forward stands behind the later one."""
    policy, other = make(attach_loss=attach_loss), make()
    first = policy(batch(1))["actions"][0]
    joined(policy, {**batch(2), "state": first}, attach_loss).backward()
    plain, one = by_hand(other, batch(1))
    later = {**batch(2), "state": plain["actions"][0]}
    output, two = by_hand(other, later)
    (loop_loss(output, later) + one + two).backward()
    same(gradients(policy), gradients(other))
    policy(batch(3))  # nothing is left over from the step before


@pytest.mark.parametrize("reduction", ["mean", "scaled", "weighted"])
def test_fault_15_add_gives_each_sample_its_own(
    reduction: str, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """As a policy does that returns its losses sample by sample, of which the explicit sum is tested below."""
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    reduce = {
        "mean": torch.mean,
        "scaled": lambda losses: 8 * losses.sum(),
        "weighted": lambda losses: (weights * losses).sum(),
    }[reduction]
    outside, inside = make(attach_loss="manual"), make(kind=TinyPolicy, adapter=TinyAdapter)
    losses = (outside(batch())["actions"][0] - batch()["action"]).square().mean(-1)
    reduce(outside.spatial_forcing.add(losses)).backward()
    reduce(inside(batch(), "none")[0]).backward()
    same(gradients(outside), gradients(inside))


@pytest.mark.parametrize("attach_loss", ["return", *ATTACH])
@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch has a GradScaler for CUDA alone")
def test_fault_14_the_real_scaler_through_its_changes(
    attach_loss: str, by_hand, make: Make, batch: Batch, same: Same
) -> None:
    """Its scale grows with every step, and a step whose loss is no number is skipped."""

    def train(policy: OutsidePolicy, loss_of: Callable[..., torch.Tensor], known: bool) -> dict[str, torch.Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        if known:
            policy.spatial_forcing.scaler = scaler
        optimizer = torch.optim.SGD(policy.parameters(), 1e-2)
        scales = []
        for seed in range(4):
            data = batch(seed)
            if seed == 2:
                data["state"][0, 0] = torch.inf
            optimizer.zero_grad()
            scaler.scale(loss_of(policy, data)).backward()
            scales.append(scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        assert scales == [1024.0, 2048.0, 4096.0, 2048.0]
        return {name: parameter.detach() for name, parameter in policy.named_parameters()}

    def loss_in(output: Any, data: dict[str, torch.Tensor]) -> torch.Tensor:
        return output[0] if attach_loss == "return" else loop_loss(output, data)

    def explicit(policy: OutsidePolicy, data: dict[str, torch.Tensor]) -> torch.Tensor:
        output, alignment = by_hand(policy, data)
        return loss_in(output, data) + alignment

    def forced(policy: OutsidePolicy, data: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = loss_in(policy(data), data)
        return policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss

    kind: Any = {"kind": TinyPolicy, "adapter": TinyAdapter} if attach_loss == "return" else {}
    found = train(make(attach_loss=attach_loss, **kind), forced, attach_loss in ("auto", "backward"))
    same(found, train(make(**kind), explicit, False))


def test_a_forward_that_does_not_align_adds_nothing(
    attach_loss, make: Make, batch: Batch, gradients: Gradients
) -> None:
    policy = make(attach_loss=attach_loss)
    with SpatialForcing.disabled(policy):
        joined(policy, batch(), attach_loss).backward()
    plain = OutsidePolicy().double()
    plain.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("spatial_forcing")})
    loop_loss(plain(batch()), batch()).backward()
    assert all(torch.equal(gradient, gradients(policy)[name]) for name, gradient in gradients(plain).items())


def test_a_forward_that_does_not_align_takes_nothing_of_the_one_before(make: Make, batch: Batch) -> None:
    policy = make(attach_loss="manual")
    loop_loss(policy(batch()), batch())
    with SpatialForcing.disabled(policy):
        loss = loop_loss(policy(batch()), batch())
        assert policy.spatial_forcing.add(loss) is loss
    assert policy.spatial_forcing.steps == 2


@pytest.mark.filterwarnings("ignore:sfkit could not verify the gradient path")
@pytest.mark.parametrize("reduction", ["mean", "by sample", "sum over samples"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant", "reentrant"])
def test_fault_15_a_loss_inside_the_policy(
    reduction, checkpointing, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """Joined where it is returned, with its share whatever is done there: reduced, scaled, divided, accumulated."""
    policy, other = (make(adapter=TinyAdapter, kind=TinyPolicy, policy={"checkpointing": checkpointing}) for _ in "ab")
    factor = 1024 / 2 * (2 if reduction.startswith("sum") else 1)
    for seed in (0, 1):
        loss, _ = policy(batch(seed), "mean" if reduction == "mean" else "none")
        reduced = loss.sum() if reduction.startswith("sum") else loss.mean()
        (reduced * 1024 / 2).backward()
        output, alignment = by_hand(other, batch(seed))
        ((output[0] + alignment) * factor).backward()
    same(gradients(policy), gradients(other))


@pytest.mark.parametrize("together", [False, True], ids=["two backwards", "two forwards"])
def test_fault_55_a_loss_inside_the_policy_follows_every_pass(
    together: bool, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    policy, other = (make(adapter=TinyAdapter, kind=TinyPolicy) for _ in "ab")
    if together:
        (policy(batch(1))[0] + 3 * policy(batch(2))[0]).backward()
    else:
        loss, _ = policy(batch(1))
        loss.backward(retain_graph=True)
        (3 * loss).backward()
    for seed, factor in ((1, 1), (2 if together else 1, 3)):
        output, alignment = by_hand(other, batch(seed))
        (factor * (output[0] + alignment)).backward()
    same(gradients(policy), gradients(other))


class TuplePolicy(OutsidePolicy):
    """Reentrant checkpoints see tensors in a tuple alone."""

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:  # type: ignore[override]
        return (self.act(batch),)


def test_add_after_a_policy_that_is_checkpointed_as_a_whole(
    reference, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """Not reentrant: where it is, ``add`` is refused."""
    policy, other = make(attach_loss="manual"), make()
    output = checkpoint(policy, batch(), use_reentrant=False)
    policy.spatial_forcing.add(loop_loss(output, batch())).backward()
    reference(other, batch()).backward()
    same(gradients(policy), gradients(other))
    assert policy.spatial_forcing.steps == 1


@pytest.mark.parametrize("inside", [True, False], ids=["loss inside", "loss outside"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_fault_04_a_policy_that_is_checkpointed_as_a_whole(
    reentrant: bool, inside: bool, by_hand, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """Its forward runs again in backward: counted once, checked once, and of the same alignment."""
    kinds: Any = {"kind": TinyPolicy, "adapter": TinyAdapter} if inside else {"kind": TuplePolicy}
    policy, other = (make(**kinds, grad_accumulation=1, health={"every": 1}) for _ in "ab")

    def loss_of(output: Any, seed: int) -> torch.Tensor:
        return output[0] if inside else (output[0] - batch(seed)["action"]).abs().mean()

    for seed in range(2):
        data = batch(seed)

        def run(images: torch.Tensor, data: Any = data) -> Any:
            return policy({**data, "images": images})

        # A reentrant checkpoint needs an argument that requires a gradient.
        loss_of(checkpoint(run, data["images"].requires_grad_(), use_reentrant=reentrant), seed).backward()
        output, alignment = by_hand(other, batch(seed))
        (loss_of(output, seed) + alignment).backward()
    same(gradients(policy), gradients(other))
    handle = policy.spatial_forcing
    assert handle.steps == 2
    assert handle.check.reaches_policy or reentrant
    policy(batch(2))
    assert handle.metrics()["sf_grad_ratio"] > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_policy_that_runs_in_parts_under_checkpoint(
    reentrant, reference, make: Make, batch: Batch, gradients: Gradients, same: Same
) -> None:
    """What comes after the policy is recomputed in backward; the alignment is not."""
    policy, other = make(), make()
    output = policy(batch())["actions"][0]
    checkpoint(lambda actions: (actions - batch()["action"]).abs().mean(), output, use_reentrant=reentrant).backward()
    reference(other, batch()).backward()
    same(gradients(policy), gradients(other))
    assert policy.spatial_forcing.steps == 1
