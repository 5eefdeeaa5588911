"""The generic adapter on policies without a framework: what it finds, what it refuses, what is saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfkit import GenericAdapter, ImageTokens, SpatialForcing
from sfkit.errors import (
    AdapterError,
    ConfigError,
    GradientError,
    LossError,
    ShapeError,
    TapError,
    ViewsError,
)  # fmt: skip
from sfkit.policies.base import ForwardCall
from sfkit.policies.generic import Span
from sfkit.policies.generic.blocks import first_tap
from sfkit.testing.checks import CorrespondenceError, check_correspondence
from sfkit.testing.tiny import PatchTeacher, TinyPolicy, tiny_batch
from sfkit.training.taps import Residual

TINY: dict[str, Any] = {
    "blocks": "blocks", "tokens": Span(0, 32), "grid": (2, 4, 4), "images": "images", "pixels": "[0,1]",
}  # fmt: skip


def wrap(policy: nn.Module, teacher: Any = None, *, at: int | None = 0, **options: Any) -> Any:
    adapter = GenericAdapter(**{**TINY, **options})
    return SpatialForcing.wrap(policy.train(), teacher or PatchTeacher(), adapter=adapter, student_layer=at)


def brighten(batch: dict[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
    images = batch["images"].clone()
    images[:, view, :, box[0], box[1]] = 1 - images[:, view, :, box[0], box[1]]
    return {**batch, "images": images}


# -------------------------------------------------------------------------------------------------- taps and tokens


def test_it_is_as_good_as_an_adapter_of_its_own(wrapped: Callable[..., TinyPolicy], tiny: Callable[..., Any]) -> None:
    batch = tiny_batch()
    for layer in (0, 2, 3):
        losses = []
        for policy in (wrapped(student_layer=layer), wrap(tiny(), at=layer)):
            torch.manual_seed(5)
            loss, _ = policy(batch)
            loss.backward()
            losses.append((loss, policy.blocks[0].qkv.weight.grad))
        assert torch.equal(losses[0][0], losses[1][0])
        # At student layer 0 the gradient of the alignment passes through the embedding alone.
        torch.testing.assert_close(losses[0][1], losses[1][1])


def test_fault_01_uncalled_blocks_are_tapped_at_their_norm(tiny: Callable[..., Any]) -> None:
    policy = wrap(tiny(fused=True), at=2)
    policy(tiny_batch())
    assert policy.spatial_forcing.status().pairs[0].tap == "blocks.2.input_layernorm"


def test_fault_05_35_a_generic_layer_k_is_after_k_blocks(tiny: Callable[..., Any]) -> None:
    policy, batch = tiny(fused=True), tiny_batch()
    hidden, attend = policy._embed(batch)
    streams = [hidden]
    for block in policy.blocks:
        streams.append(block(streams[-1], attend))
    for layer, stream in enumerate(streams):
        wrapped = wrap(tiny(fused=True), at=layer)
        wrapped.load_state_dict(
            {**policy.state_dict(), **wrapped.spatial_forcing.state_dict(prefix="spatial_forcing.")}
        )
        seen = []
        wrapped.spatial_forcing.adapter.visual_tokens = partial(_note, seen, wrapped.spatial_forcing.adapter)
        wrapped(batch)
        torch.testing.assert_close(seen[0], stream)


def _note(seen: list[Tensor], adapter: GenericAdapter, hidden: Tensor, views: Any) -> Any:
    seen.append(hidden)
    return type(adapter).visual_tokens(adapter, hidden, views)


def test_fault_05_35_post_norm_blocks_are_tapped_at_their_input() -> None:
    after = nn.TransformerEncoderLayer(16, 2, 32, norm_first=False)
    before = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True)
    assert first_tap(after, "blocks.0").module is after
    assert first_tap(before, "blocks.0").module is before.norm1


def test_fault_01_a_tap_that_never_fires_is_an_error(tiny: Callable[..., Any]) -> None:
    policy = wrap(tiny(fused=True), at=2, norm="")
    with pytest.raises(TapError, match=r"student layer 2 \(blocks\.2, input\) did not fire"):
        policy(tiny_batch())
    policy = wrap(tiny(fused=False), at=2, norm="")
    policy(tiny_batch())


@pytest.mark.parametrize("padding", ["left", "right"])
def test_fault_16_20_image_tokens_are_found_by_id(make_text: Callable[..., Any], padding: str) -> None:
    case = make_text(padding)
    policy = wrap_case(case)
    check_correspondence(policy, case.batch(), case.perturb)


def wrap_case(case: Any) -> Any:
    return SpatialForcing.wrap(case.policy.train(), PatchTeacher(), adapter=case.adapter, student_layer=0)


def test_fault_16_a_span_is_where_it_says(tiny: Callable[..., Any]) -> None:
    check_correspondence(wrap(tiny()), tiny_batch(), brighten)
    check_correspondence(wrap(tiny(), tokens=[Span(0, 16), Span(-17, 16)]), tiny_batch(), brighten)
    for wrong in (Span(1, 32), (Span(16, 16), Span(0, 16))):
        with pytest.raises(CorrespondenceError, match="student"):
            check_correspondence(wrap(tiny(), tokens=wrong), tiny_batch(), brighten)


def test_fault_16_a_function_returns_positions(make_text: Callable[..., Any]) -> None:
    case = make_text("left", tokens=lambda call: torch.arange(24) + 3)
    case.ids = case.ids[1:].repeat(2, 1)  # no padding: one word, the images, four words
    with pytest.raises(CorrespondenceError):
        check_correspondence(wrap_case(case), case.batch(), case.perturb)
    case = make_text(
        "left", tokens=lambda call: (call.arguments["batch"]["input_ids"] == 99).nonzero()[:, 1].view(-1, 24)
    )
    check_correspondence(wrap_case(case), case.batch(), case.perturb)


def test_a_grid_with_rows_for_columns_is_found_out(make_text: Callable[..., Any]) -> None:
    case = make_text(grid=(2, 4, 3), resize=(32, 24))
    with pytest.raises(CorrespondenceError):
        check_correspondence(wrap_case(case), case.batch(), case.perturb)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Span(1, 31), "tokens hold 31 positions, but 2 views of 4x4 tokens are 32"),
        ((Span(0, 16), Span(16, 15)), "tokens hold 31 positions"),
        ((Span(0, 20), Span(16, 12)), "overlap"),
    ],
)
def test_fault_16_a_span_must_hold_the_grid(tokens: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenericAdapter(**{**TINY, "tokens": tokens})


def test_fault_16_a_span_beyond_the_sequence_is_an_error(tiny: Callable[..., Any]) -> None:
    for tokens in (Span(2, 32), Span(-40, 32)):
        with pytest.raises(ShapeError, match="leads beyond the tapped sequence of 33 tokens"):
            wrap(tiny(), tokens=tokens)(tiny_batch())


def test_fault_16_a_truncated_text_is_an_error(make_text: Callable[..., Any]) -> None:
    case = make_text()
    policy = wrap_case(case)
    handle, batch = policy.spatial_forcing, case.batch()
    batch["input_ids"] = batch["input_ids"][:, :20]
    with pytest.raises(
        ShapeError, match=r"Samples hold \[19\] image tokens \(id 99 in 'input_ids'\), but 2 views of 3x4"
    ):
        handle.adapter.views(ForwardCall({"batch": batch}, None))


def test_image_tokens_of_absent_views_may_be_left_out(make_text: Callable[..., Any]) -> None:
    adapter = make_text(present="present").adapter.bind(make_text().policy)
    ids = torch.full((2, 26), 99)
    ids[0, 24:], ids[1, 6:20] = 1, 1
    batch = {"input_ids": ids, "pixel_values": torch.rand(2, 2, 3, 24, 32) * 2 - 1}
    batch["present"] = torch.tensor([[True, True], [False, True]])
    views = adapter.views(ForwardCall({"batch": batch}, None))
    hidden = torch.arange(26.0)[None, :, None].expand(2, 26, 16)
    found = adapter.visual_tokens(hidden, views)
    assert found.values[0, :, :, :, 0].flatten().tolist() == list(range(24))
    assert found.values[1, 1, :, :, 0].flatten().tolist() == [*range(6), *range(20, 26)]
    assert found.mask.sum((2, 3)).tolist() == [[12, 12], [0, 12]]


def test_the_sequence_must_be_that_of_the_ids(make_text: Callable[..., Any]) -> None:
    case = make_text()
    adapter = case.adapter.bind(case.policy)
    views = adapter.views(ForwardCall({"batch": case.batch()}, None))
    with pytest.raises(ShapeError, match="reads another sequence"):
        adapter.visual_tokens(torch.zeros(2, 20, 16), views)
    with pytest.raises(ShapeError, match="width 8, expected 16"):
        adapter.visual_tokens(torch.zeros(2, 29, 8), views)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": "block"}, AdapterError, "has no module 'block'. Did you mean 'blocks'"),
        ({"blocks": "blocks.0.out"}, AdapterError, "holds no module"),
        ({"norm": "norm"}, AdapterError, "has no module 'norm'"),
        ({"grid": (2, 4)}, ConfigError, "grid"),
        ({"grid": (0, 4, 4)}, ConfigError, "must be >= 1, got 0"),
        ({"pixel": "[0,1]"}, ConfigError, "Did you mean 'pixels'"),
        ({"depth": "depth"}, ConfigError, "unit of the depth"),
        ({"names": ("wrist",)}, ConfigError, "names has 1 entries for 2 views"),
    ],
)
def test_bad_options_are_refused_at_the_wrap(
    tiny: Callable[..., Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wrap(tiny(), **options)


def test_a_layer_after_the_last_block_needs_a_norm(tiny: Callable[..., Any]) -> None:
    policy = tiny()
    policy.last, policy.norm = policy.norm, nn.Identity()
    assert wrap(policy, final_norm="last", at=3).spatial_forcing.taps.at[Residual(3)].path == "last"
    policy = nn.Module()
    policy.inner = tiny().blocks
    with pytest.raises(AdapterError, match="no norm is known there"):
        wrap(policy, blocks="inner", at=3)


def test_blocks_may_be_listed_or_found_by_a_function(tiny: Callable[..., Any]) -> None:
    listed = ("blocks.0", "blocks.1", "blocks.2")
    for blocks in (listed, lambda policy: policy.blocks):
        policy = wrap(tiny(), blocks=blocks, at=1)
        policy(tiny_batch())
        assert policy.spatial_forcing.taps.at[Residual(1)].path == "blocks.1.input_layernorm"


def test_a_frozen_policy_is_an_error(tiny: Callable[..., Any]) -> None:
    policy = tiny()
    policy.embed.requires_grad_(False)
    policy.blocks[0].requires_grad_(False)
    with pytest.raises(GradientError, match="reaches no trainable parameter"):
        wrap(policy, at=1)(tiny_batch())


# ----------------------------------------------------------------------------------------------- views and geometry


def test_fault_24_padding_and_absent_cameras_are_masked(tiny: Callable[..., Any]) -> None:
    adapter = wrap(tiny(), valid=(8, 0, 16, 32), present="present").spatial_forcing.adapter
    batch = {**tiny_batch(), "present": torch.tensor([[True, False], [True, True]])}
    views = adapter.views(ForwardCall({"batch": batch}, None))
    mask = adapter.visual_tokens(torch.zeros(2, 33, 16), views).mask
    assert mask[0, 0].any(1).tolist() == [False, True, True, False]
    assert not mask[0, 1].any()
    with pytest.raises(ShapeError, match="leads beyond a view of 32x32"):
        wrap(tiny(), valid=(8, 0, 32, 32))(batch)
    with pytest.raises(ShapeError, match=r"present has shape \(2, 3\)"):
        wrap(tiny(), present="state")(batch)


def test_fault_24_a_mask_of_pixels_may_be_in_the_batch(tiny: Callable[..., Any]) -> None:
    inside = torch.ones(2, 2, 32, 32, dtype=torch.bool)
    inside[:, 1, :8] = False
    adapter = wrap(tiny(), valid="inside").spatial_forcing.adapter
    views = adapter.views(ForwardCall({"batch": {**tiny_batch(), "inside": inside}}, None))
    assert torch.equal(views.valid, inside)


def test_geometry_comes_from_the_batch(tiny: Callable[..., Any]) -> None:
    fields = {"depth": "depth", "depth_unit": "mm", "intrinsics": "intrinsics"}
    batch = tiny_batch()
    policy = wrap(tiny(), "geometry", **fields)
    batch["depth"] = batch["depth"] * 1000
    policy(batch)
    assert policy.spatial_forcing.metrics()["sf_valid_token_fraction"] == 1.0
    with pytest.raises(ViewsError, match="bfloat16"):
        policy({**batch, "depth": batch["depth"].bfloat16()})
    with pytest.raises(ViewsError, match="has no option depth"):
        wrap(tiny(), "geometry")(batch)


def test_cameras_are_refused(tiny: Callable[..., Any]) -> None:
    policy = wrap(tiny())
    policy.spatial_forcing.adapter.cameras = SimpleNamespace()
    with pytest.raises(ConfigError, match="cameras="):
        policy(tiny_batch())


def test_a_batch_without_images_is_an_error(tiny: Callable[..., Any]) -> None:
    policy = wrap(tiny(), images="pixel_values")
    with pytest.raises(
        ViewsError, match=r"images='pixel_values' is not in the batch. It has: .*images \(2, 2, 3, 32, 32\)"
    ):
        policy(tiny_batch())


def test_images_may_be_one_per_view_with_dots_in_their_keys(tiny: Callable[..., Any]) -> None:
    batch = tiny_batch()
    batch["observation.images.left"], batch["observation.images.right"] = batch["images"].unbind(1)
    keys = ("observation.images.left", "observation.images.right")
    adapter = wrap(tiny(), images=keys, names=keys).spatial_forcing.adapter
    views = adapter.views(ForwardCall({"batch": batch}, None))
    assert torch.equal(views.images, batch["images"])
    assert views.names == keys


# ------------------------------------------------------------------------------------------------------------- loss


class Examples(nn.Module):
    """The way of starVLA: a list of examples with PIL images, and a dictionary with ``action_loss``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyPolicy()

    def forward(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([torch.from_numpy(example["image"][0]) for example in examples])
        batch = {"images": images.permute(0, 3, 1, 2)[:, None] / 255, "state": torch.zeros(len(examples), 3)}
        actions = torch.stack([torch.tensor(example["action"]) for example in examples])
        return {"action_loss": self.inner({**batch, "action": actions})[0], "extra": actions}


def test_examples_of_starvla(tiny: Callable[..., Any]) -> None:
    policy = Examples()
    adapter = GenericAdapter(
        blocks="inner.blocks", tokens=Span(0, 16), grid=(1, 4, 4), images="examples.*.image", pixels="0-255"
    )
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    examples = [{"image": [picture.numpy()], "action": [0.0, 1.0, 2.0]} for picture in pictures]
    wrapped = SpatialForcing.wrap(policy.train(), PatchTeacher(), adapter=adapter, student_layer=0)
    found = wrapped(examples)
    metrics = wrapped.spatial_forcing.metrics()
    assert float(found["action_loss"].detach()) == pytest.approx(
        metrics["action_loss"] + 0.5 * metrics["sf_loss"], rel=1e-5
    )

    def perturb(batch: list[dict[str, Any]], view: int, box: tuple[slice, slice]) -> list[dict[str, Any]]:
        changed = [{**example, "image": [example["image"][0].copy()]} for example in batch]
        for example in changed:
            example["image"][0][box] = 255 - example["image"][0][box]
        return changed

    check_correspondence(wrapped, examples, perturb)


class Returning(nn.Module):
    """Returns a fixed value."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.make = TinyPolicy(), make

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.make((self.inner.act(batch) - batch["action"]).square())


@pytest.mark.parametrize(
    ("make", "path", "read"),
    [
        (lambda loss: loss.mean(), None, lambda out: out),
        (lambda loss: loss, "output", lambda out: out.mean()),
        (lambda loss: {"losses": {"flow": loss.mean()}}, "losses.flow", lambda out: out["losses"]["flow"]),
        (lambda loss: (0, {"total": loss.mean()}), "1.total", lambda out: out[1]["total"]),
        (lambda loss: SimpleNamespace(total=loss.mean()), "total", lambda out: out.total),
        (lambda loss: (1, loss.mean()), "1", lambda out: out[1]),
    ],
)
def test_the_loss_is_joined_where_it_is(make: Any, path: str | None, read: Callable[[Any], Tensor]) -> None:
    policy = wrap(Returning(make), blocks="inner.blocks", loss=path)
    loss = read(policy(tiny_batch()))
    metrics = policy.spatial_forcing.metrics()
    assert float(loss.detach()) == pytest.approx(metrics["action_loss"] + 0.5 * metrics["sf_loss"], rel=1e-5)
    loss.backward()
    assert policy.inner.embed.weight.grad.abs().sum() > 0


def test_predictions_are_not_taken_for_a_loss() -> None:
    policy = wrap(Returning(lambda loss: loss), blocks="inner.blocks")
    with pytest.raises(LossError, match=r"shape \(2, 3\), which may be a loss for each element, or predictions"):
        policy(tiny_batch())
    policy = wrap(Returning(lambda loss: {"a": loss}), blocks="inner.blocks")
    policy(tiny_batch())["a"].mean().backward()
    with pytest.raises(LossError, match=r"from what Returning returned .* never added"):
        policy(tiny_batch())
    policy = wrap(Returning(lambda loss: {"a": loss}), blocks="inner.blocks", loss="b")
    with pytest.raises(LossError, match="loss='b' leads to NoneType in the dict with a"):
        policy(tiny_batch())


def test_a_loss_that_the_loop_computes() -> None:
    def gradient(add: bool) -> Tensor:
        torch.manual_seed(0)
        policy = wrap(Returning(lambda loss: {"a": loss}), blocks="inner.blocks", loss="outside")
        loss = policy(tiny_batch())["a"].mean()
        (policy.spatial_forcing.add(loss) if add else loss).backward()
        assert policy.spatial_forcing.pairs[0].projector.fc1.weight.grad.abs().sum() > 0
        return policy.inner.embed.weight.grad

    torch.testing.assert_close(gradient(add=True), gradient(add=False))


# ------------------------------------------------------------------------------------------------ saved and resumed


def test_options_are_saved_and_read_again(tiny: Callable[..., Any], tmp_path: Path) -> None:
    policy = wrap(tiny(), tokens=[Span(0, 16), Span(16, 16)], present="present", loss="0")
    policy.spatial_forcing.save(tmp_path)
    again = SpatialForcing.from_pretrained(tiny(), tmp_path, pairs=None, teacher=PatchTeacher(), student_layer=0)
    assert again.spatial_forcing.adapter.options == policy.spatial_forcing.adapter.options
    assert isinstance(again.spatial_forcing.adapter, GenericAdapter)


def test_functions_are_not_saved_and_the_error_says_so(tiny: Callable[..., Any], tmp_path: Path) -> None:
    policy = wrap(tiny(), images=lambda call: call.arguments["batch"]["images"])
    policy.spatial_forcing.save(tmp_path)
    changes: dict[str, Any] = {"pairs": None, "teacher": PatchTeacher(), "student_layer": 0}
    with pytest.raises(ConfigError, match=r"functions are not saved: images was .*test_adapter:.*lambda"):
        SpatialForcing.from_pretrained(tiny(), tmp_path, **changes)
    given = policy.spatial_forcing.adapter
    again = SpatialForcing.from_pretrained(tiny(), tmp_path, adapter=given, **changes)
    assert again.spatial_forcing.adapter.policy is again


def test_one_adapter_serves_several_policies(tiny: Callable[..., Any]) -> None:
    adapter = GenericAdapter(**TINY)
    first, second = (SpatialForcing.wrap(tiny(), PatchTeacher(), adapter=adapter) for _ in range(2))
    assert first.spatial_forcing.adapter is not second.spatial_forcing.adapter
    with pytest.raises(AdapterError, match="belongs to no policy"):
        adapter.tap(0)
    with pytest.raises(ConfigError, match="options and single fields"):
        GenericAdapter(options={}, blocks="blocks")


def test_image_tokens_need_token_ids(tiny: Callable[..., Any]) -> None:
    with pytest.raises(ShapeError, match="expected token ids"):
        wrap(tiny(), tokens=ImageTokens(7, where="images"))(tiny_batch())
