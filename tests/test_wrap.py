"""Attaching and detaching: the same object, bit-identical where nothing is aligned, and clear refusals."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sfkit import SfkitWarning, SpatialForcing
from sfkit.errors import AdapterError, ConfigError, GradientError, LossError, TapError, UnknownNameError, WrapError
from sfkit.testing.checks import assert_rounded, float64
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules())


def outputs(policy: nn.Module, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return policy(tiny_batch(seed=seed))[0]  # type: ignore[no-any-return]


def test_wrap_returns_the_same_object_of_the_same_class(tiny: Callable[..., TinyPolicy]) -> None:
    plain = tiny()
    policy = SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))
    assert policy is plain
    assert isinstance(policy, TinyPolicy)
    assert type(policy).__qualname__ == "TinyPolicy"
    assert type(policy).__module__ == TinyPolicy.__module__
    assert SpatialForcing.of(policy) is policy.spatial_forcing
    assert SpatialForcing.of(tiny()) is None


def test_the_signature_is_the_policys_own(wrapped: Callable[..., TinyPolicy]) -> None:
    policy = wrapped()
    assert inspect.signature(policy.forward) == inspect.signature(tiny_forward())
    assert policy.forward.__doc__ == TinyPolicy.forward.__doc__


def tiny_forward() -> Any:
    return TinyPolicy().forward


def test_one_line_is_logged(wrapped: Callable[..., TinyPolicy], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sfkit"):
        wrapped()
    assert [record.getMessage() for record in caplog.records] == [
        "loss = action + 0.5 × cosine(tiny@2 → patch@3), projector 392 parameters, teacher license patch: Apache-2.0"
    ]


def test_fault_02_calling_forward_directly_aligns_as_well(wrapped: Callable[..., TinyPolicy]) -> None:
    # LeRobot 0.6.1 calls policy.forward(batch): a hook on the policy would never run.
    policy = wrapped()
    _, info = policy.forward(tiny_batch())
    assert info["sf_loss"] > 0


def test_fault_02_the_adapter_sees_arguments_left_at_their_default(tiny: Any, monkeypatch: Any) -> None:
    # An adapter reads what forward was given by name; what the caller leaves out has its default, and is not missing.
    seen = []
    views = TinyAdapter.views
    monkeypatch.setattr(TinyAdapter, "views", lambda self, call: seen.append(call.arguments) or views(self, call))
    policy = tiny()
    SpatialForcing.wrap(policy, "geometry", student_layer=2, adapter=TinyAdapter(policy))
    policy(tiny_batch())
    policy(tiny_batch(), "none")
    policy(reduction="none", batch=tiny_batch())
    assert [arguments["reduction"] for arguments in seen] == ["mean", "none", "none"]
    assert all(set(arguments) == {"self", "batch", "reduction"} for arguments in seen)


@pytest.mark.parametrize("fused", [True, False])
def test_fault_01_the_tap_fires_whether_or_not_blocks_are_called(wrapped: Any, fused: bool) -> None:
    policy = wrapped(policy={"fused": fused}, student_layer=1)
    policy(tiny_batch())
    assert policy.spatial_forcing.status().pairs[0].fired == 1


def test_fault_01_after_a_silent_tap_the_next_step_works(wrapped: Any) -> None:
    policy = wrapped(student_layer=3)
    tapped, policy.norm = policy.norm, nn.LayerNorm(16)
    with pytest.raises(TapError, match=r"student layer 3 .*did not fire") as caught:
        policy(tiny_batch())
    assert "skip_nnmodule_hook_guards" in caught.value.remedy
    policy.norm = tapped
    policy(tiny_batch())


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_fault_05_35_layer_k_is_the_stream_after_k_blocks(wrapped: Any, layer: int) -> None:
    policy = wrapped(student_layer=layer)
    seen: dict[int, torch.Tensor] = {}
    adapter, real = policy.spatial_forcing.adapter, policy.spatial_forcing.adapter.visual_tokens
    adapter.visual_tokens = lambda hidden, views: seen.update({layer: hidden}) or real(hidden, views)
    policy(tiny_batch())
    # Independently: apply the blocks one after the other, out of place.
    hidden, attend = policy._embed(tiny_batch())
    for block in policy.blocks[:layer]:
        hidden = block(hidden, attend)
    assert torch.equal(seen[layer], hidden)


@pytest.mark.parametrize("layer", [-1, 4])
def test_fault_35_layers_out_of_range_say_what_is_valid(wrapped: Any, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"Student layer {layer} is out of range") as caught:
        wrapped(student_layer=layer)
    assert "0 (embeddings) to 3" in caught.value.remedy


def test_the_default_student_layer_is_two_thirds(tiny: Callable[..., TinyPolicy]) -> None:
    plain = tiny()
    policy = SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))
    assert policy.spatial_forcing.status().pairs[0].student_layer == 2


def test_fault_30_without_alignment_nothing_changes(tiny: Any, wrapped: Any) -> None:
    plain, policy = tiny(), wrapped()
    host = policy.spatial_forcing.runners[0]
    outputs(policy)  # an aligned step before, which must leave nothing switched on
    with torch.no_grad():
        assert torch.equal(outputs(plain), outputs(policy))
    with SpatialForcing.disabled(policy):
        loss = outputs(policy)
        assert torch.equal(outputs(plain), loss)
        loss.backward()
        assert all(parameter.grad is None for parameter in policy.spatial_forcing.parameters())
    weightless = wrapped(weight=0.0)
    assert torch.equal(outputs(plain), outputs(weightless))
    with torch.no_grad():
        assert torch.equal(outputs(plain.eval()), outputs(policy.eval()))
        assert torch.equal(plain.act(tiny_batch()), policy.act(tiny_batch()))
    assert (host.num_forwards, weightless.spatial_forcing.runners[0].num_forwards) == (1, 0)


@pytest.mark.filterwarnings("ignore:.*in eval mode:sfkit.SfkitWarning")
def test_fault_30_eval_mode_with_gradients_changes_nothing(tiny: Any, wrapped: Any) -> None:
    plain, policy = tiny().eval(), wrapped()
    outputs(policy)
    policy.eval()
    assert torch.equal(outputs(plain), outputs(policy))
    assert policy.spatial_forcing.runners[0].num_forwards == 1


def test_fault_50_a_policy_left_in_eval_mode_is_reported_once(wrapped: Any) -> None:
    policy = wrapped().eval()
    with pytest.warns(SfkitWarning, match=r"Call policy\.train\(\)"):
        outputs(policy)
    outputs(policy)


def test_unwrap_gives_back_the_very_object(tiny: Any, wrapped: Any) -> None:
    plain, policy = tiny(), wrapped()
    outputs(policy).backward()
    policy.zero_grad()
    again = SpatialForcing.unwrap(policy)
    assert again is policy
    assert type(policy) is TinyPolicy
    assert hooks(policy) == 0
    assert not hasattr(policy, "spatial_forcing")
    assert list(policy.state_dict()) == list(plain.state_dict())
    assert torch.equal(outputs(plain), outputs(policy))
    SpatialForcing.wrap(policy, PatchTeacher(), adapter=TinyAdapter(policy))
    outputs(policy)


@float64()
def test_gradients_are_those_of_the_explicit_sum(tiny: Any, wrapped: Any) -> None:
    plain, policy = tiny().double(), wrapped(weight=0.3).double()
    batch = {key: value.double() for key, value in tiny_batch().items()}
    loss, _ = policy(batch)
    loss.backward()
    handle = policy.spatial_forcing
    seen: list[torch.Tensor] = []
    remove = plain.blocks[2].input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    action, _ = plain(batch)
    remove.remove()
    tokens = seen[0][:, :-1].reshape(2, 2, 4, 4, 16).float()
    projected = handle.pairs[0].projector(tokens, None)
    pooled = nn.functional.adaptive_avg_pool2d(batch["images"].flatten(0, 1).float(), (4, 4)).permute(0, 2, 3, 1)
    target = handle.runners[0]._model(pooled).reshape(2, 2, 4, 4, -1) * 3
    aux = (1 - nn.functional.cosine_similarity(projected, target, dim=-1)).mean()
    (action + 0.3 * aux).backward()
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert len(wanted) > 10
    assert_rounded({name: policy.get_parameter(name).grad for name in wanted}, wanted)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fault_43_the_losses_are_told_apart(tiny: Any, wrapped: Any, reduction: str) -> None:
    plain, policy = tiny(), wrapped(weight=0.25)
    batch = tiny_batch(b=3)
    torch.manual_seed(0)
    alone, _ = plain(batch, reduction=reduction)
    torch.manual_seed(0)
    loss, info = policy(batch, reduction=reduction)
    assert loss.shape == alone.shape
    assert info["action_loss"] == pytest.approx(alone.mean().item())
    assert info["sf_effective_weight"] == 0.25
    assert loss.mean().item() == pytest.approx(info["action_loss"] + 0.25 * info["sf_loss"], rel=1e-5)
    metrics = policy.spatial_forcing.metrics()
    assert metrics["sf_loss"] == pytest.approx(info["sf_loss"])
    assert metrics["sf_cosine"] == pytest.approx(1 - info["sf_loss"], abs=1e-5)
    assert metrics["sf_valid_token_fraction"] == 1.0


def test_fault_51_wrapping_leaves_the_random_state_alone(tiny: Any) -> None:
    plain = tiny()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))
    assert torch.equal(before, torch.get_rng_state())
    plain(tiny_batch())
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    tiny()(tiny_batch())
    assert torch.equal(after, torch.get_rng_state()), "plain and wrapped steps must draw the same numbers"


def test_the_projector_depends_on_its_own_seed_alone(wrapped: Any) -> None:
    torch.manual_seed(1)
    one = wrapped(seed=5).spatial_forcing.pairs[0].projector.fc1.weight
    torch.manual_seed(2)
    same = wrapped(seed=5).spatial_forcing.pairs[0].projector.fc1.weight
    other = wrapped(seed=6).spatial_forcing.pairs[0].projector.fc1.weight
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_fault_28_the_teacher_is_nowhere_in_the_policy(wrapped: Any) -> None:
    policy = wrapped()
    policy(tiny_batch())
    teacher = policy.spatial_forcing.runners[0]._model
    assert teacher is not None
    ids = {id(parameter) for parameter in teacher.parameters()}
    assert not ids & {id(parameter) for parameter in policy.parameters()}
    assert teacher not in list(policy.modules())
    assert sorted(key for key in policy.state_dict() if key.startswith("spatial_forcing")) == [
        "spatial_forcing.pairs.0.projector.fc1.bias",
        "spatial_forcing.pairs.0.projector.fc1.weight",
        "spatial_forcing.pairs.0.projector.fc2.bias",
        "spatial_forcing.pairs.0.projector.fc2.weight",
        "spatial_forcing.pairs.0.projector.norm.bias",
        "spatial_forcing.pairs.0.projector.norm.weight",
        "spatial_forcing.step",
    ]


# ---------------------------------------------------------------------------- refusals


def test_wrapping_twice_is_refused(wrapped: Any) -> None:
    policy = wrapped()
    with pytest.raises(WrapError, match="wrapped already"):
        SpatialForcing.wrap(policy, PatchTeacher())


def test_unwrapping_something_else_is_refused(tiny: Any) -> None:
    with pytest.raises(WrapError, match="not wrapped"):
        SpatialForcing.unwrap(tiny())
    with pytest.raises(WrapError, match="not wrapped"), SpatialForcing.disabled(tiny()):
        pass


def test_unknown_policies_list_the_installed_adapters(tiny: Any) -> None:
    with pytest.raises(AdapterError, match=r"No adapter handles sfkit\.testing\.tiny\.TinyPolicy"):
        SpatialForcing.wrap(tiny(), PatchTeacher())


def test_things_that_are_no_module_are_refused() -> None:
    with pytest.raises(WrapError, match=r"needs a torch\.nn\.Module, got dict"):
        SpatialForcing.wrap({}, "geometry")  # type: ignore[type-var]


def test_unknown_teachers_get_a_suggestion(tiny: Any) -> None:
    plain = tiny()
    with pytest.raises(UnknownNameError, match="Did you mean 'geometry'"):
        SpatialForcing.wrap(plain, "geometri", adapter=TinyAdapter(plain))
    assert type(plain) is TinyPolicy, "a failed wrap leaves the policy as it was"
    assert hooks(plain) == 0


def test_a_teacher_is_needed(tiny: Any) -> None:
    plain = tiny()
    with pytest.raises(ConfigError, match="No teacher"):
        SpatialForcing.wrap(plain, adapter=TinyAdapter(plain))


@pytest.mark.parametrize("layer", [-1, 0, 4])
def test_fault_35_teacher_layers_out_of_range_say_what_is_valid(wrapped: Any, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"Teacher layer {layer} is out of range") as caught:
        wrapped(teacher_layer=layer)
    assert "1 to 3" in caught.value.remedy


def test_a_policy_without_trainable_parameters_is_refused(tiny: Any) -> None:
    plain = tiny().requires_grad_(False)
    with pytest.raises(GradientError, match="no trainable parameter"):
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))
    assert type(plain) is TinyPolicy


@pytest.mark.parametrize("how", ["module", "method", "submodule"])
def test_compiled_policies_are_refused(tiny: Any, how: str) -> None:
    plain: Any = tiny()
    adapter = TinyAdapter(plain)
    if how == "module":
        plain = torch.compile(plain, backend="eager")
    elif how == "method":
        plain.compile(backend="eager")
    else:
        plain.blocks[0].forward = torch.compile(plain.blocks[0].forward, backend="eager")
    with pytest.raises(WrapError, match="compile") as caught:
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=adapter)
    assert "after wrapping" in caught.value.remedy or "Wrap it before" in caught.value.remedy


def test_fault_46_an_accelerate_prepared_policy_is_refused(tiny: Any) -> None:
    plain = tiny()
    plain._original_forward, plain.forward = plain.forward, plain.forward
    with pytest.raises(WrapError, match="accelerate's prepare has replaced"):
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """The library, whose state belongs to the process: its precision would go on into tests that come later."""
    library = pytest.importorskip("accelerate")
    yield library
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def test_fault_46_the_real_accelerate(tiny: Any, accelerate: Any) -> None:
    plain = tiny()
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(plain)
    with pytest.raises(WrapError, match="accelerate's prepare has replaced"):
        SpatialForcing.wrap(prepared, PatchTeacher(), adapter=TinyAdapter(plain))
    policy = tiny()
    SpatialForcing.wrap(policy, PatchTeacher(), adapter=TinyAdapter(policy))
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(policy)
    loss, info = prepared(tiny_batch())
    loss.backward()
    assert info["sf_loss"] > 0


def test_data_parallel_wrappers_are_refused_by_name(tiny: Any) -> None:
    plain = nn.DataParallel(tiny())
    with pytest.raises(WrapError, match="already inside DataParallel"):
        SpatialForcing.wrap(plain, PatchTeacher())


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("FullyShardedDataParallel", "torch.distributed.fsdp", "FSDP"),
        ("FSDPModule", "torch.distributed.fsdp", "fully_shard"),
        ("DeepSpeedEngine", "deepspeed.runtime.engine", "DeepSpeed"),
    ],
)
def test_sharded_policies_are_refused_by_name(tiny: Any, name: str, module: str, said: str) -> None:
    # fully_shard swaps the class in place for one that also derives from FSDPModule; the others wrap.
    sharded = type(name, (), {"__module__": module})
    plain = tiny()
    plain.__class__ = type("TinyPolicy", (TinyPolicy, sharded), {})
    with pytest.raises(WrapError, match=said):
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))


def test_a_part_that_is_wrapped_for_several_processes_is_refused(tiny: Any) -> None:
    # The projector would be outside of it: nobody would average its gradients.
    plain = tiny()
    plain.blocks[1] = nn.DataParallel(plain.blocks[1])
    with pytest.raises(WrapError, match=r"submodule 'blocks\.1' is already inside DataParallel"):
        SpatialForcing.wrap(plain, PatchTeacher(), adapter=TinyAdapter(plain))


def test_a_forward_without_a_loss_is_an_error(wrapped: Any, monkeypatch: Any) -> None:
    policy = wrapped()
    monkeypatch.setattr(policy.spatial_forcing.adapter, "loss", lambda output: None)
    policy.head.requires_grad_(False)
    with torch.no_grad():
        policy(tiny_batch())
    # Nothing that a loop could differentiate either.
    monkeypatch.setattr(TinyPolicy, "forward", lambda self, batch, forward=TinyPolicy.forward: forward(self, batch)[1])
    with pytest.raises(LossError, match="returned no loss"):
        policy(tiny_batch())
