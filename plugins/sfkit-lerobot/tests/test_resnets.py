"""ACT and Diffusion: cells of a ResNet, normalized images, random crops, and several observation steps."""

from __future__ import annotations

import copy

import pytest
import torch
from sfkit_lerobot import ACTAdapter, DiffusionAdapter
from sfkit_lerobot.testing import CAMERAS, tiny_act, tiny_diffusion, tiny_image_stats, tiny_lerobot_batch, tiny_rig

from sfkit import SpatialForcing
from sfkit.errors import AdapterError, GradientError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.teachers.geometry import GeometryTeacher
from sfkit.training.checks import check_views
from sfkit.training.taps import Residual, Taps

FRONT, WRIST = CAMERAS
SEPARATE = {"use_separate_rgb_encoder_per_camera": True}
CROPPED = {"crop_shape": (96, 112), "image_shape": (3, 128, 128)}
#: Policy, its options, student layer, rows and columns of cells.
CASES = {
    "act": (tiny_act, {}, 0, (4, 4)),
    "act-odd": (tiny_act, {"image_shape": (3, 100, 150)}, 0, (4, 5)),
    "diffusion": (tiny_diffusion, {}, 3, (8, 8)),
    "diffusion-final": (tiny_diffusion, {}, 4, (4, 4)),
    "diffusion-first": (tiny_diffusion, {}, 1, (32, 32)),
    "diffusion-separate": (tiny_diffusion, SEPARATE, 3, (8, 8)),
    "diffusion-cropped": (tiny_diffusion, CROPPED, 3, (6, 7)),
    "diffusion-cropped-separate": (tiny_diffusion, {**CROPPED, **SEPARATE}, 3, (6, 7)),
    "diffusion-central": (tiny_diffusion, {**CROPPED, "crop_is_random": False}, 3, (6, 7)),
    "diffusion-resized": (tiny_diffusion, {"resize_shape": (96, 128), "crop_ratio": 0.75}, 2, (9, 12)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, options, layer, grid = CASES[request.param]
    torch.manual_seed(0)
    return make(**options), layer, grid


def adapter_of(policy, **options):
    kind = {"act": ACTAdapter, "diffusion": DiffusionAdapter}[policy.config.type]
    adapter = kind(policy, {"image_stats": tiny_image_stats(policy), **options})
    adapter.cameras = tiny_rig(policy)
    return adapter


def run(adapter, batch, layer, seed=1):
    """Views, tokens, and what each backbone saw, of one training forward."""
    site = Residual(layer)
    taps = Taps(adapter, [site])
    model = adapter.policy
    backbones = [model.model.backbone] if model.config.type == "act" else [e.backbone for e in adapter._encoders]
    seen = []
    hooks = [backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for backbone in backbones]
    torch.manual_seed(seed)
    try:
        _, captured, found = taps.run(model.forward, (dict(batch),), {})
    finally:
        for handle in hooks:
            handle.remove()
    with torch.no_grad():
        views = adapter.views(ForwardCall({"batch": batch}, None, found, (layer,)))
    return views, site.tokens(adapter, captured[site], views), seen


def pixels_of_cell(views, view, cell, grid, size):
    """``(h, w)`` bool: pixels of the dataset's image that ``source_to_view`` puts into a cell."""
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
    x, y, _ = torch.einsum(
        "ij,jhw->ihw", views.source_to_view[0, view], torch.stack([columns, rows, torch.ones_like(rows)])
    )
    (h, w), (gh, gw) = views.size, grid
    return ((y + 0.5) // (h / gh) == cell[0]) & ((x + 0.5) // (w / gw) == cell[1])


def most_moved(before, after):
    moved = (after.values - before.values).norm(dim=-1).mean(0)
    return tuple(int(i) for i in torch.unravel_index(moved.argmax(), moved.shape))


def test_fault_20_a_patch_moves_its_own_token_and_its_own_cell(case) -> None:
    policy, layer, grid = case
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, batch_size=4, geometry=True)
    views, before, _ = run(adapter, batch, layer)
    assert before.grid == grid
    teacher = GeometryTeacher()
    teacher.fit([(views, grid)])
    (target,) = teacher.encode(None, views, [1], grid)
    view = 1
    for cell in ((1, 1), (grid[0] // 2, 1)):
        assert bool(before.mask[0, view, cell[0], cell[1]])
        patch = pixels_of_cell(views, view, cell, grid, batch[WRIST].shape[-2:])
        changed = dict(batch)
        changed[WRIST] = torch.where(patch, 4 - batch[WRIST], batch[WRIST])
        changed[f"{WRIST}_depth"] = torch.where(patch, batch[f"{WRIST}_depth"] + 0.5, batch[f"{WRIST}_depth"])
        views_after, after, _ = run(adapter, changed, layer)
        assert most_moved(before, after) == (view, *cell)
        (target_after,) = teacher.encode(None, views_after, [1], grid)
        assert most_moved(target, target_after) == (view, *cell)


@pytest.mark.parametrize(
    ("make", "options", "layer"),
    [
        (tiny_act, {}, 0),
        (tiny_act, {"replace_final_stride_with_dilation": True, "vision_backbone": "resnet50"}, 0),
        (tiny_diffusion, {"n_obs_steps": 1}, 1),
        (tiny_diffusion, {"n_obs_steps": 1}, 4),
    ],
)
def test_fault_20_a_cell_looks_at_the_middle_of_its_patch(make, options, layer) -> None:
    torch.manual_seed(0)
    policy = make(cameras=(FRONT,), image_shape=(3, 384, 384), **options)
    adapter = adapter_of(policy)
    batch = tiny_lerobot_batch(policy, batch_size=1, geometry=True)
    picture = batch[FRONT] = batch[FRONT].requires_grad_()
    views, tokens, _ = run(adapter, batch, layer)
    cell = tokens.grid[0] // 2
    token, looked = tokens.values[0, 0, cell, cell], 0
    for _ in range(4):
        cotangent = torch.randn(token.shape)
        (gradient,) = torch.autograd.grad(token, picture, cotangent, retain_graph=True)
        looked = looked + gradient.square().reshape(-1, 384, 384).sum(0)
    pixels = torch.arange(384.0)
    center = torch.stack([(looked.sum(0) * pixels).sum(), (looked.sum(1) * pixels).sum(), looked.sum()]) / looked.sum()
    stride = adapter.stride(layer)
    wanted = torch.full((2,), stride * cell + (stride - 1) / 2)
    torch.testing.assert_close((views.source_to_view[0, 0] @ center)[:2], wanted, atol=max(0.8, stride / 6), rtol=0)


def test_fault_26_27_the_teacher_sees_the_crop_unnormalized(case) -> None:
    policy, layer, _ = case
    adapter, steps = adapter_of(policy), policy.config.n_obs_steps
    batch = tiny_lerobot_batch(policy, geometry=True)
    views, _, seen = run(adapter, batch, layer)
    b, v = views.images.shape[:2]
    if policy.config.type == "act":
        network = torch.stack(seen, 1)
    elif len(seen) > 1:
        network = torch.stack([one.unflatten(0, (b, steps))[:, -1] for one in seen], 1)
    else:
        network = seen[0].unflatten(0, (b, steps, v))[:, -1]
    network = network * 0.25 + 0.5
    top = left = adapter.stride(layer) // 2
    h, w = network.shape[-2:]
    inside = views.images[..., top : top + h, left : left + w]
    torch.testing.assert_close(inside, network[..., : inside.shape[-2], : inside.shape[-1]], atol=2e-6, rtol=0)
    assert bool(views.valid[..., top : top + h, left : left + w].all())
    assert int(views.valid[0, 0].sum()) == inside.shape[-2] * inside.shape[-1]
    check_views(views)


@pytest.mark.parametrize("separate", [False, True])
def test_fault_27_depth_moves_with_the_random_crop(separate) -> None:
    torch.manual_seed(0)
    policy = tiny_diffusion(**CROPPED, use_separate_rgb_encoder_per_camera=separate)
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy, batch_size=1, geometry=True)
    rows = torch.arange(128.0).view(-1, 1).expand(128, 128) + 1
    batch.update({f"{camera}_depth": rows.expand(1, 2, 1, 128, 128) for camera in CAMERAS})
    origins = []
    for seed in range(4):
        views, _, _ = run(adapter, batch, 3, seed)
        shift = 8
        # The depth of a pixel is its row in the dataset's image, plus one.
        origins.append([int(views.depth[0, view, shift, shift + 4]) - 1 for view in (0, 1)])
        matrices = views.source_to_view[0]
        assert [int(shift - m[1, 2]) for m in matrices] == origins[-1]
    assert len({tuple(origin) for origin in origins}) > 1
    assert all(first == second for first, second in origins) is not separate


def test_fault_27_a_forward_in_eval_mode_crops_the_middle() -> None:
    policy = tiny_diffusion(**CROPPED).eval()
    views, _, _ = run(adapter_of(policy), tiny_lerobot_batch(policy, geometry=True), 3)
    torch.testing.assert_close(views.source_to_view[0, 0, :2, 2], torch.tensor([8.0 - 8, 8 - 16]))


def test_fault_26_unknown_statistics_are_an_error() -> None:
    policy = tiny_act()
    with pytest.raises(ViewsError, match=r"normalizes images by MEAN_STD.*\n.*image_stats\(dataset\)"):
        run(ACTAdapter(policy, None), tiny_lerobot_batch(policy), 0)


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_fault_25_views_are_in_the_order_of_the_policy(kind) -> None:
    policy = {"act": tiny_act, "diffusion": tiny_diffusion}[kind]()
    batch = tiny_lerobot_batch(policy, geometry=True)
    backwards = {key: batch[key] for key in reversed(batch)}
    layer = {"act": 0, "diffusion": 3}[kind]
    (views, tokens, _), (others, same, _) = (run(adapter_of(policy), one, layer) for one in (batch, backwards))
    assert views.names == others.names == CAMERAS
    assert torch.equal(views.images, others.images)
    assert torch.equal(tokens.values, same.values)


def wrapped(kind, **options):
    torch.manual_seed(0)
    policy = {"act": tiny_act, "diffusion": tiny_diffusion}[kind](**options)
    plain = copy.deepcopy(policy)
    stats = {"image_stats": tiny_image_stats(policy)}
    return SpatialForcing.wrap(policy, "geometry", adapter=(kind, stats), cameras=tiny_rig(policy)), plain


@pytest.mark.parametrize(("kind", "options"), [("act", {}), ("diffusion", CROPPED), ("diffusion", SEPARATE)])
def test_they_train_and_leave_no_trace(kind, options, tmp_path) -> None:
    policy, plain = wrapped(kind, **options)
    hooks = lambda module: sum(len(m._forward_pre_hooks) for m in module.modules())  # noqa: E731
    batch = tiny_lerobot_batch(policy, geometry=True)
    torch.manual_seed(5)
    own, _ = plain(dict(batch))
    torch.manual_seed(5)
    loss, logs = policy(dict(batch))
    assert logs["action_loss"] == pytest.approx(float(own.detach()), rel=1e-6)
    torch.testing.assert_close(loss, own + 0.5 * logs["sf_loss"])
    optimizer = torch.optim.Adam([*policy.get_optim_params(), *_missing(policy)], lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss, logs = policy(dict(batch))
        loss.backward()
        optimizer.step()
    status = policy.spatial_forcing.status()
    assert (status.reaches_policy, status.projector_moved, status.teacher_runs) == (True, True, 6)
    policy.save_pretrained(tmp_path)
    assert (tmp_path / "spatial_forcing" / "projector.safetensors").is_file()
    assert type(plain).from_pretrained(tmp_path, strict=True).config.type == kind
    assert copy.deepcopy(policy).spatial_forcing.describe() == policy.spatial_forcing.describe()
    unwrapped = SpatialForcing.unwrap(policy)
    assert hooks(unwrapped) == hooks(plain)
    assert type(unwrapped) is type(plain)


def _missing(policy):
    """Diffusion's ``get_optim_params`` knows its own network alone."""
    return policy.spatial_forcing.parameters() if policy.config.type == "diffusion" else []


def test_fault_10_diffusion_without_projector_is_an_error() -> None:
    policy, _ = wrapped("diffusion")
    batch, optimizer = tiny_lerobot_batch(policy, geometry=True), torch.optim.Adam(policy.get_optim_params())

    def train() -> None:
        for _ in range(4):
            optimizer.zero_grad()
            policy(dict(batch))[0].backward()
            optimizer.step()

    with pytest.raises(GradientError, match=r"never the projector.*\n.*policy\.spatial_forcing"):
        train()


def test_layers_on_different_grids_are_refused() -> None:
    policy = tiny_diffusion()
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy, geometry=True)
    crops = {"crop.0": ((0, 0),)}
    with pytest.raises(AdapterError, match=r"layers 3, 4 of diffusion have cells of \[16, 32\] pixels"):
        adapter.views(ForwardCall({"batch": batch}, None, crops, (3, 4)))
    assert adapter.views(ForwardCall({"batch": batch}, None, crops, (0, 1))).size == (128, 128)


def test_pictures_of_different_sizes_are_refused() -> None:
    policy = tiny_act()
    batch = tiny_lerobot_batch(policy, geometry=True)
    batch[WRIST] = batch[WRIST][..., :64]
    with pytest.raises(ViewsError, match="different sizes"):
        adapter_of(policy).views(ForwardCall({"batch": batch}, None, student_layers=(0,)))
