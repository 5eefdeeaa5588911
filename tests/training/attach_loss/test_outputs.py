"""What a forward may return, and what a loop may do with it, where the loop computes its loss."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from sfkit.errors import GradientError, LossError
from sfkit.testing.tiny import OutsidePolicy, TinyAdapter, TinyPolicy, loop_loss

Make, Batch = Callable[..., Any], Callable[..., dict[str, Tensor]]
Gradients, Same, ByHand = Callable[..., dict[str, Tensor]], Callable[..., None], Callable[..., Any]

Named = collections.namedtuple("Named", ["actions", "extra"])


@dataclasses.dataclass(frozen=True)
class Record:
    actions: Any
    extra: Any = None


#: How the actions are packed, and how a loop takes them out again.
PACKINGS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda a: a, lambda o: o),
    "tuple": (lambda a: (1, a), lambda o: o[1]),
    "namedtuple": (lambda a: Named(a, None), lambda o: o.actions),
    "dataclass": (lambda a: Record((a,)), lambda o: o.actions[0]),
    "nested": (lambda a: [[a.detach()], {"x": (a, a)}], lambda o: o[1]["x"][1]),
    "namespace": (lambda a: types.SimpleNamespace(actions=a), lambda o: o.actions),
    "distribution": (lambda a: (torch.distributions.Normal(a, 1.0), a.mean()), lambda o: o[0].rsample() * 0 + o[0].loc),
}


def returning(pack: Callable[[Tensor], Any]) -> type[TinyPolicy]:
    class Returning(TinyPolicy):
        def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
            return pack(self.act(batch))

    return Returning


@pytest.fixture
def agree(make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same) -> Callable[..., None]:
    """``agree(kind, loss_of, join)``: the loop's gradients are those of the explicit sum."""

    def agree(kind: type[TinyPolicy], loss_of: Callable[[Any], Tensor], attach_loss: str, **how: Any) -> None:
        policy, other = make(kind=kind, attach_loss=attach_loss), make(kind=kind)
        loss = loss_of(policy(batch()))
        (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward(**how)
        output, alignment = by_hand(other, batch())
        (loss_of(output) + alignment).backward()
        same(gradients(policy), gradients(other))

    return agree


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_fault_13_whatever_forward_returns_can_carry(attach_loss: str, packing: str, agree: Any, batch: Batch) -> None:
    pack, take = PACKINGS[packing]
    agree(returning(pack), lambda output: F.l1_loss(take(output), batch()["action"]), attach_loss)


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_outputs_may_be_changed_in_place(attach_loss: str, agree: Any, batch: Batch) -> None:
    """Also where a loss that nobody reads was computed from them before, as in ``OutsidePolicy``."""

    def halved(output: Any) -> Tensor:
        output["actions"][0].div_(2)
        return loop_loss(output, batch())

    agree(OutsidePolicy, halved, attach_loss)


@pytest.mark.parametrize(
    ("pack", "says"),
    [
        (lambda a: (a.tanh(),), "modified by an inplace operation"),  # as without sfkit: tanh needs what it gave
        (lambda a: (a, a[:1]), "is a view and is being modified"),  # two names of one memory
    ],
)
def test_a_change_in_place_that_would_spoil_gradients_is_torchs_error(pack: Any, says: str, make: Make, batch: Batch):
    output = make(kind=returning(pack))(batch())
    with pytest.raises(RuntimeError, match=says):
        output[-1].mul_(2.0).sum().backward()


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_fault_55_backward_into_some_leaves_trains_once(
    attach_loss: str, make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same
) -> None:
    """``backward(inputs=...)`` is no mere look, whether or not the projector is among them."""
    for named in (["embed.weight", "head.weight"], None):
        policy, other = make(attach_loss=attach_loss), make()

        def leaves(of: Any, named: Any = named) -> list[Tensor]:
            return [of.get_parameter(name) for name in named] if named else list(of.parameters())

        output = policy(batch())
        loss = loop_loss(output, batch())
        loss = policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss
        loss.backward(inputs=leaves(policy), retain_graph=True)
        output["actions"][0].square().sum().backward(inputs=leaves(policy))
        plain, alignment = by_hand(other, batch())
        total = loop_loss(plain, batch()) + alignment + plain["actions"][0].square().sum()
        total.backward(inputs=leaves(other))
        same(gradients(policy), gradients(other))


def test_fault_13_55_add_is_missed_also_after_backward_into_some_leaves(make: Make, batch: Batch) -> None:
    class LossIsElsewhere(TinyAdapter):
        def loss(self, output: Any) -> None:
            return None

    policy = make(adapter=LossIsElsewhere)
    loop_loss(policy(batch()), batch()).backward(inputs=list(policy.parameters()))
    with pytest.raises(LossError, match="never added"):
        policy(batch())


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_fault_55_the_alignment_counts_once_however_many_outputs_are_used(
    attach_loss: str, make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same
) -> None:
    """Also in a pass that only looks."""

    def both(output: Any) -> Tensor:
        return loop_loss(output, batch()) + output["loss"]  # type: ignore[no-any-return]

    policy, other = make(attach_loss=attach_loss), make()
    loss = both(policy(batch()))
    loss = policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss
    (looked,) = torch.autograd.grad(loss, policy.embed.weight, retain_graph=True)
    loss.backward()
    torch.testing.assert_close(looked, policy.embed.weight.grad)
    output, alignment = by_hand(other, batch())
    (both(output) + alignment).backward()
    same(gradients(policy), gradients(other))


class Marked(torch.autograd.Function):
    """Identity that counts how often backward comes through."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        Marked.passes += 1
        return gradients[0]


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_backward_does_not_run_through_outputs_that_the_loop_does_not_use(
    attach_loss: str, make: Make, batch: Batch
) -> None:
    policy = make(kind=returning(lambda a: {"actions": (a,), "logits": Marked.apply(a)}), attach_loss=attach_loss)
    before = Marked.passes
    loss = loop_loss(policy(batch()), batch())
    (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward()
    assert Marked.passes == before
    assert policy.spatial_forcing.pairs[0].projector.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_gradients_of_gradients(
    attach_loss: str, make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same
) -> None:
    def penalized(policy: Any, loss: Tensor) -> None:
        parts = torch.autograd.grad(loss, [policy.embed.weight, policy.head.weight], create_graph=True)
        (loss + sum(part.square().sum() for part in parts)).backward()

    policy, other = make(attach_loss=attach_loss), make()
    loss = loop_loss(policy(batch()), batch())
    penalized(policy, policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss)
    output, alignment = by_hand(other, batch())
    penalized(other, loop_loss(output, batch()) + alignment)
    same(gradients(policy), gradients(other))


@pytest.mark.parametrize("attach_loss", ["backward", "manual"])
def test_forwards_that_are_not_trained_on_change_nothing(
    attach_loss: str, make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same
) -> None:
    policy, other = make(attach_loss=attach_loss, grad_accumulation=1), make()
    for seed in range(2):
        output = policy(batch(seed))
        with torch.no_grad():
            policy(batch(7))  # in training mode, as OFT samples actions for its log
            policy.eval()(batch(8))
        policy.train()
        policy(batch(9))  # what it returns is dropped
        loss = loop_loss(output, batch(seed))
        (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward()
        plain, alignment = by_hand(other, batch(seed))
        (loop_loss(plain, batch(seed)) + alignment).backward()
    same(gradients(policy), gradients(other))


def test_functional_call(make: Make, batch: Batch, by_hand: ByHand, gradients: Gradients, same: Same) -> None:
    policy, other = make(), make()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in policy.named_parameters()}
    loop_loss(torch.func.functional_call(policy, parameters, (batch(),)), batch()).backward()
    output, alignment = by_hand(other, batch())
    (loop_loss(output, batch()) + alignment).backward()
    same({name: p.grad for name, p in parameters.items() if p.grad is not None}, gradients(other))


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_torch_func_are_refused(transform: str, make: Make, batch: Batch) -> None:
    policy, fixed = make(), batch()

    def loss(state: Tensor) -> Tensor:
        data = {**fixed, "state": state}
        return loop_loss(policy(data), data)

    state = fixed["state"]
    with pytest.raises(GradientError, match=r"torch\.func"):
        torch.func.grad(loss)(state) if transform == "grad" else torch.func.vmap(loss)(torch.stack([state, state]))


@pytest.mark.parametrize("where", ["an attribute", "other outputs"])
def test_fault_13_a_loss_from_elsewhere_is_told_from_a_forgotten_optimizer(where: str, make: Make, batch: Batch):
    class Elsewhere(TinyPolicy):
        def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
            self.kept = self.act(batch)
            return {"actions": self.kept * 1, "loss": F.l1_loss(self.kept, batch["action"])}

    class Inside(TinyAdapter):
        def with_loss(self, output: Any, loss: Tensor, logs: Any) -> Any:
            return {**output, "loss": loss}

    outside = {} if where == "an attribute" else {"adapter": Inside}
    policy = make(kind=Elsewhere, **outside)
    optimizer = torch.optim.SGD(policy.parameters(), 1e-2)

    def loop() -> None:
        for seed in range(3):
            optimizer.zero_grad()
            output = policy(batch(seed))
            read = policy.kept if where == "an attribute" else output["actions"]
            F.mse_loss(read, batch(seed)["action"]).backward()
            optimizer.step()

    with pytest.raises(GradientError, match="no backward pass went through"):
        loop()
