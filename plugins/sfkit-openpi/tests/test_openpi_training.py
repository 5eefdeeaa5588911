"""Steps as openpi's trainer makes them: precision, several backward passes, several processes, several steps."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_openpi import CAMERAS

from sfkit import SpatialForcing
from sfkit.errors import SfkitWarning
from sfkit.training.taps import Residual

WORKER = Path(__file__).parent / "workers" / "openpi_ranks.py"


def gradients(policy):
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def forward(policy, batch, seed):
    torch.manual_seed(seed)
    return policy(*batch)


def assert_same(found, wanted, *, rtol=1e-5):
    assert found.keys() == wanted.keys()
    flat = [torch.cat([value.float().flatten() for value in side.values()]) for side in (found, wanted)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < rtol


def test_two_backward_passes_of_one_forward(setup, wrap) -> None:
    policy, batch = wrap(setup.build(checkpointing=True)), setup.batch()
    forward(policy, batch, 3).mean().backward()
    wanted = gradients(policy)
    policy.zero_grad()
    losses = forward(policy, batch, 3)
    (losses[0].mean() / 2).backward(retain_graph=True)
    (losses[1].mean() / 2).backward()
    assert_same(gradients(policy), wanted)


@pytest.mark.parametrize("together", [True, False], ids=["one backward", "accumulated"])
def test_two_forwards_for_one_step(together, setup, wrap) -> None:
    policy = wrap(setup.build(checkpointing=True))
    batches = [setup.batch(seed=seed) for seed in (0, 1)]
    wanted: dict[str, torch.Tensor] = {}
    for seed, batch in enumerate(batches):
        alone = wrap(setup.build())
        (forward(alone, batch, seed).mean() / 2).backward()
        wanted = {name: wanted.get(name, 0) + gradient for name, gradient in gradients(alone).items()}
    halves = (forward(policy, batch, seed).mean() / 2 for seed, batch in enumerate(batches))
    if together:
        sum(halves).backward()
    else:
        for half in halves:
            half.backward()
    assert_same(gradients(policy), wanted)


def test_steps_in_bfloat16(setup, wrap) -> None:
    batch = setup.batch()
    plain, policy = setup.build(dtype="bfloat16"), wrap(setup.build(dtype="bfloat16"))
    decoder = "paligemma_with_expert.paligemma.model.language_model.layers.1.mlp.up_proj.weight"
    assert policy.get_parameter(decoder).dtype == torch.bfloat16
    forward(plain, batch, 3).mean().backward()
    losses = forward(policy, batch, 3)
    losses.mean().backward()
    metrics = policy.spatial_forcing.metrics()
    assert losses.dtype == torch.float32
    assert losses.mean().item() == pytest.approx(metrics["action_loss"] + 0.5 * metrics["sf_loss"], rel=1e-5)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in policy.spatial_forcing.pairs.parameters())
    below = policy.get_parameter(decoder).grad - plain.get_parameter(decoder).grad
    assert float(below.float().norm()) > 0.05 * float(plain.get_parameter(decoder).grad.float().norm())
    # The expert is above the tap: its gradient is the plain policy's to the last bit.
    assert torch.equal(policy.action_out_proj.weight.grad, plain.action_out_proj.weight.grad)


def test_steps_train_the_policy_and_the_projector(setup, wrap) -> None:
    policy = wrap(setup.build(checkpointing=True))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    found = []
    for _ in range(4):
        forward(policy, setup.batch(), 3).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(policy.spatial_forcing.metrics()["sf_loss"])
    status = policy.spatial_forcing.status()
    assert (status.reaches_policy, status.projector_moved, status.steps) == (True, True, 4)
    assert found[-1] < found[0]


def test_a_batch_without_a_camera_is_an_error(standin, wrap) -> None:
    policy = wrap(standin.build())
    with pytest.warns(SfkitWarning, match=r"No visual token of this batch could be aligned.*missing cameras"):
        losses = policy(*standin.batch(missing=CAMERAS))
    losses.mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("mode", [None, "default"], ids=["eager", "compiled by openpi"])
def test_sampling_actions_is_untouched(mode, setup, wrap, monkeypatch) -> None:
    # What matters is that the method was bound before the wrap, and not what the compiler makes of it.
    monkeypatch.setattr(torch, "compile", lambda method, mode: functools.partial(method))
    policy, batch = setup.build(pytorch_compile_mode=mode).eval(), setup.batch()
    noise = torch.randn(2, 3, 4)

    def sample():
        return policy.sample_actions("cpu", batch[0], noise=noise, num_steps=2)

    before = sample()
    wrap(policy)
    assert torch.equal(sample(), before)
    forward(policy.train(), batch, 3).mean().backward()
    assert policy.spatial_forcing.status().teacher_runs == 1
    policy.eval()
    assert torch.equal(sample(), before)
    SpatialForcing.unwrap(policy)
    assert torch.equal(sample(), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dynamo warns about the graph breaks that openpi's augmentation makes
def test_a_policy_compiled_after_the_wrap_aligns_at_every_step(standin, wrap) -> None:
    eager, policy = (wrap(standin.build(checkpointing=True)) for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(policy, backend="aot_eager")
    for seed in range(3):
        for called, owner in ((eager, eager), (compiled, policy)):
            owner.zero_grad()
            forward(called, standin.batch(seed=seed), seed).mean().backward()
        assert policy.spatial_forcing.taps.at[Residual(2)].fired == 1
        assert policy.spatial_forcing.metrics() == pytest.approx(eager.spatial_forcing.metrics(), rel=1e-5)
        assert_same(gradients(policy), gradients(eager))
    torch._dynamo.reset()


@pytest.mark.slow
def test_two_processes_have_the_mean_of_their_gradients(tmp_path) -> None:
    command = [sys.executable, str(WORKER), str(tmp_path / "rank")]
    same = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the openpi of this process
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, env=same)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank.{rank}", weights_only=False) for rank in range(2)]
    assert len(ranks[0]) == 4
    for scenario, one in ranks[0].items():
        assert max(one["errors"].values()) < 1e-5, (scenario, one["errors"])
        for name, gradient in one["gradients"].items():
            assert torch.equal(gradient, ranks[1][scenario]["gradients"][name]), (scenario, name)
