"""What holds for every policy with a vision-language model: taps, views, gradient, loss, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sfkit_lerobot.testing import CAMERAS

from sfkit import SpatialForcing
from sfkit.errors import GradientError, ShapeError
from sfkit.testing.checks import check_correspondence
from sfkit.training.taps import Tap

# VLA-JEPA asks for an autocast to float32, which torch knows on GPUs only.
pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    # MolmoAct2 is written for an older transformers.
    pytest.mark.filterwarnings("ignore:`rope_config_validation` is deprecated:FutureWarning"),
]

FRONT, WRIST = CAMERAS
KINDS = ("groot", "xvla", "evo1", "vla_jepa", "wall_x", "molmoact2")
#: What is frozen by default, by the options that freeze it, and what the error must name.
FROZEN = {
    "groot": ({"tune_llm": False, "tune_visual": False}, "tune_llm=True"),
    "evo1": ({"training_stage": "stage1"}, "training_stage"),
    "vla_jepa": ({"freeze_qwen": True}, "freeze_qwen=False"),
    "molmoact2": (
        {"train_action_expert_only": True, "action_mode": "continuous"},
        "train_action_expert_only=False",
    ),
}
#: Views that reach the tapped decoder; all cameras if not said.
ALIGNED = {"xvla": 1}
#: Tokens of a square view and of one of 48 x 80 pixels; 4 x 4 if not said.
GRIDS = {"vla_jepa": ((4, 4), (3, 5)), "wall_x": ((9, 9), (5, 9))}
#: Options under which the decoder's own forward runs, and not its blocks one by one.
RUNS_ITS_DECODER = {"molmoact2": {"action_mode": "discrete"}}
#: The norm behind the last block; ``norm`` if not said.
ENDS_IN = {"molmoact2": "ln_f"}
#: Policies whose optimizer gets their model alone, whatever is beside it.
WITHOUT_PROJECTOR = {"vla_jepa"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def block_path(adapter, block: int) -> str:
    """Where a block of the tapped decoder is: its tap is on itself or on its first norm."""
    return adapter.tap(block).path.removesuffix(".input_layernorm").removesuffix(".self_attn_layer_norm")


def forward(policy, batch, **arguments):
    torch.manual_seed(3)
    return policy.forward(dict(batch), **arguments)


def test_fault_01_taps_fire_once_and_their_paths_lead_to_them(kind, build, batch_of, adapter_of) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    points = [adapter.tap(layer) for layer in range(adapter.num_layers + 1)]
    taps = [Tap(layer, point) for layer, point in enumerate(points)]
    for tap in taps:
        tap.arm()
    policy.forward(batch_of(policy))
    assert [tap.fired for tap in taps] == [1] * (4 + 1)
    for layer, (tap, point) in enumerate(zip(taps, points, strict=True)):
        assert policy.get_submodule(point.path) is point.module
        assert tap.take()[0].shape[-1] == adapter.dim(layer)


def test_fault_35_layer_k_of_a_vlm_lies_above_k_blocks(kind, build, batch_of, adapter_of, tapped) -> None:
    policy, layer = build(kind), 2
    adapter, batch = adapter_of(policy), batch_of(policy)
    before, _, _ = tapped(adapter, batch, layer)
    for block, is_below in ((layer, False), (layer - 1, True)):
        with torch.no_grad():
            for parameter in policy.get_submodule(block_path(adapter, block)).parameters():
                parameter.add_(0.1)
        after, _, _ = tapped(adapter, batch, layer)
        assert torch.equal(after, before) is not is_below


def test_layers_match_an_independent_decoder_forward(kind, build, batch_of, adapter_of, tapped) -> None:
    policy = build(kind, **RUNS_ITS_DECODER.get(kind, {}))
    adapter, batch, given = adapter_of(policy), batch_of(policy), {}
    hook = adapter.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: given.update(kwargs, autocast=torch.is_autocast_enabled("cpu")), with_kwargs=True
    )
    first, _, _ = tapped(adapter, batch, 0)
    hook.remove()
    # VLA-JEPA runs its backbone under autocast, on CPUs too.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=given.pop("autocast")):
        output = adapter.decoder(**{**given, "output_hidden_states": True, "return_dict": True})
        end = getattr(adapter.decoder, ENDS_IN.get(kind, "norm"), torch.nn.Identity())
    # Wall-X is in bfloat16, of which it takes a copy in float32 to each norm.
    states, ending = [state.float() for state in output.hidden_states], output.last_hidden_state.float()
    torch.testing.assert_close(first, states[0], atol=1e-5, rtol=1e-4)
    # Deepstack adds to what the first blocks return, which Hugging Face records before.
    before_last, _, _ = tapped(adapter, batch, 3)
    torch.testing.assert_close(before_last, states[3], atol=1e-5, rtol=1e-4)
    last, _, _ = tapped(adapter, batch, 4)
    torch.testing.assert_close(end(last).float(), ending, atol=1e-5, rtol=1e-4)


def in_box(views, view: int, box, size) -> torch.Tensor:
    """``(h, w)`` bool: pixels of the dataset's image that lie in a box of the view's pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
    points = torch.stack([columns, rows, torch.ones_like(rows)])
    x, y, _ = torch.einsum("ij,jhw->ihw", views.source_to_view[0, view], points)
    (top, bottom), (left, right) = ((side.start - 0.5, side.stop - 0.5) for side in box)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


@pytest.mark.parametrize("size", [None, (48, 80)])
def test_fault_20_and_25_a_patch_moves_its_token_and_feature(
    kind, size, build, frames, finish, adapter_of, tapped, wrap
) -> None:
    policy = build(kind) if size is None else build(kind, image_shape=(3, *size))
    adapter, raw = adapter_of(policy), frames(policy, batch_size=1)
    _, views, student = tapped(adapter, finish(policy, raw), 0)
    assert views.names == CAMERAS[: ALIGNED.get(kind)]
    square, wide = GRIDS.get(kind, ((4, 4), (4, 4)))
    assert student.grid == (wide if size else square)

    def perturb(_, view: int, box):
        key = views.names[view]
        inside = in_box(views, view, box, raw[key].shape[-2:])
        changed = dict(raw)
        changed[key] = torch.where(inside, 1 - raw[key].round(), raw[key])
        changed[f"{key}_depth"] = torch.where(inside, raw[f"{key}_depth"] + 0.5, raw[f"{key}_depth"])
        return finish(policy, changed)

    check_correspondence(wrap(policy, student_layer=0), finish(policy, raw), perturb)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALIGNED])
def test_fault_16_views_are_found_in_prompts_of_any_length(kind, build, frames, finish, adapter_of, tapped) -> None:
    policy = build(kind)
    adapter, raw = adapter_of(policy), frames(policy)
    assert len(set(map(len, raw["task"]))) == 2
    _, views, before = tapped(adapter, finish(policy, raw), 0)
    (h, w), (rows, columns) = views.size, before.grid
    box = (slice(h // rows, 2 * h // rows), slice(2 * w // columns, 3 * w // columns))
    inside = in_box(views, 1, box, raw[WRIST].shape[-2:])
    changed = {**raw, WRIST: torch.where(inside, 1 - raw[WRIST].round(), raw[WRIST])}
    moved = (tapped(adapter, finish(policy, changed), 0)[2].values - before.values).norm(dim=-1)
    assert moved.flatten(1).argmax(1).tolist() == [rows * columns + columns + 2] * 2


def test_fault_24_and_26_the_view_is_what_the_policy_sees(kind, build, frames, finish, adapter_of, tapped) -> None:
    policy = build(kind, image_shape=(3, 96, 128))
    raw = frames(policy, batch_size=1)
    columns, rows = torch.arange(128) / 128, torch.arange(96) / 128
    blue = torch.full((96, 128), 0.75)
    raw[FRONT] = torch.stack([columns.expand(96, 128), rows[:, None].expand(96, 128), blue])[None]
    _, views, _ = tapped(adapter_of(policy), finish(policy, raw), 0)
    picture, valid = views.images[0, 0], views.valid[0, 0]
    inner = valid & (torch.nn.functional.avg_pool2d(valid[None].float(), 5, 1, 2)[0] == 1)
    assert bool(inner.any())
    torch.testing.assert_close(picture[2][inner], torch.full_like(picture[2][inner], 0.75), atol=0.01, rtol=0)
    inverse = torch.linalg.inv(views.source_to_view[0, 0])
    y, x = torch.meshgrid(*(torch.arange(n).float() for n in views.size), indexing="ij")
    x, y, _ = torch.einsum("ij,jhw->ihw", inverse, torch.stack([x, y, torch.ones_like(x)]))
    # Away from the borders, where every way to resize gives a slope back; pixels are 8-bit in some policies.
    torch.testing.assert_close(picture[0][inner], (x / 128)[inner], atol=0.012, rtol=0)
    torch.testing.assert_close(picture[1][inner], (y / 128)[inner], atol=0.012, rtol=0)


def test_depth_follows_the_picture(kind, build, frames, finish, adapter_of, tapped) -> None:
    policy = build(kind, image_shape=(3, 96, 128))
    raw = frames(policy, batch_size=1)
    raw[f"{FRONT}_depth"] = (1.0 + torch.arange(128) / 128).expand(1, 1, 96, 128).clone()
    _, views, _ = tapped(adapter_of(policy), finish(policy, raw), 0)
    inverse = torch.linalg.inv(views.source_to_view[0, 0])
    x = inverse[0, 0] * torch.arange(views.size[1]) + inverse[0, 2]
    valid = views.valid[0, 0]
    expected = (1.0 + x / 128).expand_as(valid)
    assert bool((views.depth[0, 0][valid] - expected[valid]).abs().max() < 0.005)
    assert bool((views.depth[0, 0][~valid] == 0).all())


def test_gradient_reaches_only_what_is_below_the_tap(kind, build, batch_of, adapter_of, tapped) -> None:
    policy, layer = build(kind), 2
    adapter = adapter_of(policy)
    _, _, student = tapped(adapter, batch_of(policy), layer)
    student.values.square().sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
    blocks = {k for k in range(4) if any(f"{block_path(adapter, k)}." in name for name in reached)}
    assert blocks == set(range(layer))
    assert any("vis" in name for name in reached), "the vision tower"
    assert not [name for name in reached if "action" in name]


@pytest.mark.parametrize("kind", FROZEN)
def test_fault_06_a_frozen_backbone_names_the_option(kind, build, batch_of, wrap) -> None:
    options, named = FROZEN[kind]
    policy = wrap(build(kind, **options))
    with pytest.raises(GradientError, match=named):
        policy.forward(batch_of(policy))


def test_the_loss_is_joined_and_learned(kind, build, batch_of, wrap, parameters_of) -> None:
    plain, policy = build(kind), wrap(build(kind), weight=0.25)
    batch = batch_of(plain)
    alone, before = forward(plain, batch)
    loss, info = forward(policy, batch)
    assert set(info) == set(before) | {"action_loss", "sf_loss", "sf_cosine", "sf_effective_weight"}
    assert info["action_loss"] == pytest.approx(float(alone.detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(info["action_loss"] + 0.25 * info["sf_loss"], rel=1e-5)
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] > 0

    projector = {id(parameter) for parameter in policy.spatial_forcing.parameters()}
    optimizer = torch.optim.AdamW(parameters_of(policy), lr=3e-3)
    found = projector & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == (set() if kind in WITHOUT_PROJECTOR else projector)
    if kind in WITHOUT_PROJECTOR:
        optimizer.add_param_group({"params": list(policy.spatial_forcing.parameters())})
    for group in optimizer.param_groups:
        group["lr"] = 3e-3  # MolmoAct2 has its own for each part
    for _ in range(8):
        loss, after = forward(policy, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert after["sf_cosine"] > info["sf_cosine"] + 0.02
    assert policy.spatial_forcing.status().projector_moved


@pytest.mark.parametrize("kind", sorted(WITHOUT_PROJECTOR))
def test_fault_10_an_optimizer_without_projector_is_an_error(kind, build, batch_of, wrap, parameters_of) -> None:
    policy = wrap(build(kind))
    batch, optimizer = batch_of(policy), torch.optim.AdamW(parameters_of(policy), lr=1e-3)
    for _ in range(2):
        forward(policy, batch)[0].backward()
        optimizer.step()
    with pytest.raises(GradientError, match="never the projector"):
        forward(policy, batch)


def test_fault_30_outside_training_a_vlm_changes_by_no_bit(kind, build, batch_of, wrap) -> None:
    plain, policy = build(kind), wrap(build(kind))
    batch = batch_of(plain)
    with SpatialForcing.disabled(policy):
        assert torch.equal(forward(policy, batch)[0], forward(plain, batch)[0])
    actions = []
    for each in (plain.eval(), policy.eval()):
        each.reset()
        torch.manual_seed(4)
        actions.append(each.select_action({key: value for key, value in batch.items() if key != "action"}))
    assert torch.equal(*actions)
    assert policy.spatial_forcing.status().teacher_runs == 0
    SpatialForcing.unwrap(policy.train())
    assert sum(len(module._forward_pre_hooks) for module in policy.modules()) == 0
    assert torch.equal(forward(policy, batch)[0], forward(plain.train(), batch)[0])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_wrapped_policy_saves_one_folder_more(kind, build, wrap, tmp_path) -> None:
    policy = build(kind)
    policy.save_pretrained(tmp_path / "plain")
    wrap(policy, student_layer=2).save_pretrained(tmp_path / "wrapped")
    plain, wrapped = files(tmp_path / "plain"), files(tmp_path / "wrapped")
    assert {name: wrapped[name] for name in plain} == plain
    assert {name.split("/")[0] for name in set(wrapped) - set(plain)} == {"spatial_forcing"}
    loaded = type(SpatialForcing.unwrap(policy)).from_pretrained(tmp_path / "wrapped", strict=True).train()
    expected = policy.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    resumed = SpatialForcing.from_pretrained(loaded, tmp_path / "wrapped")
    assert resumed.spatial_forcing.config.pairs[0].student_layer == 2
    assert resumed.spatial_forcing.adapter.name == kind


def test_fault_16_a_sequence_of_another_length_is_an_error(kind, build, batch_of, adapter_of, tapped) -> None:
    policy = build(kind)
    adapter = adapter_of(policy)
    hidden, views, _ = tapped(adapter, batch_of(policy), 1)
    with pytest.raises(ShapeError):
        adapter.visual_tokens(torch.cat([hidden[:, :1], hidden], 1), views)
