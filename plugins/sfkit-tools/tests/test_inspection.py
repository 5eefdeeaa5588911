"""What the inspection finds on policies of many shapes, and that it leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sfkit_tools import Inspection, inspect_policy
from torch import Tensor, nn

from sfkit import ImageTokens, Span, SpatialForcing
from sfkit.errors import AdapterError, ConfigError, ViewsError, WrapError
from sfkit.policies.generic import MeanStd
from sfkit.testing.tiny import PatchTeacher, TinyPolicy, tiny_batch


def pasted(found: Inspection, policy: nn.Module) -> Any:
    """The policy after the printed code, with a teacher that has no weights."""
    names: dict[str, Any] = {"policy": policy.train(), "Patch": PatchTeacher}
    exec(found.snippet().replace('teacher="vggt"', "teacher=Patch()"), names)
    return names["policy"]


def options(found: Inspection) -> dict[str, Any]:
    return dict(found.options)


@pytest.mark.parametrize("fused", [True, False])
def test_a_policy_is_aligned_by_what_is_printed(tiny: Callable[..., Any], fused: bool) -> None:
    policy = tiny(fused=fused)
    found = inspect_policy(policy, tiny_batch())
    assert options(found) == {
        "blocks": "blocks", "tokens": Span(0, 32), "grid": (2, 4, 4), "images": "images", "pixels": "[0,1]",
    }  # fmt: skip
    assert found.hits == 1.0
    assert [tap.path for tap in found.taps][::3] == ["blocks.0.input_layernorm", "norm"]
    assert all(tap.trained and tap.fired == 1 and tap.gradient for tap in found.taps)
    wrapped = pasted(found, policy)
    wrapped(tiny_batch())[0].backward()
    assert wrapped.spatial_forcing.status().reaches_policy


def test_fault_01_what_never_fires_is_shown(tiny: Callable[..., Any]) -> None:
    policy = tiny(fused=True)
    for block in policy.blocks:
        block.first, block.input_layernorm = block.input_layernorm, None
        block.forward = lambda hidden, attend, block=block: hidden + block.mlp(block.first(hidden))
    policy.idle = copy.deepcopy(policy.blocks)
    found = inspect_policy(policy, tiny_batch())
    assert options(found)["norm"] == "first"
    taps = {stack.path: (stack.tap, stack.fired) for stack in found.stacks}
    assert taps == {"blocks": ("first", 3), "idle": ("nothing fires", 0)}


def test_fault_06_a_frozen_backbone_is_shown(tiny: Callable[..., Any]) -> None:
    policy = tiny()
    for part in (policy.embed, policy.blocks[:2]):
        part.requires_grad_(False)
    found = inspect_policy(policy, tiny_batch())
    assert [tap.trained for tap in found.taps] == [False, False, False, True]
    # The state's token is trained, shares the sequence, and is never seen by the images' tokens.
    assert all(tap.gradient for tap in found.taps)
    assert "The default student layer 2 trains nothing: choose student_layer=3." in found.notes
    policy.blocks.requires_grad_(False)
    assert any("reaches no trainable parameter" in note for note in inspect_policy(policy, tiny_batch()).notes)


def test_fault_16_20_tokens_are_those_that_move_with_the_images(cases: Any) -> None:
    class Towered(cases.Patches):
        def __init__(self) -> None:
            super().__init__(nn.ModuleList(cases.Attending(16) for _ in range(2)))
            self.tower = nn.Sequential(*(cases.Attending(16) for _ in range(2)))
            self.prompt = nn.Parameter(torch.randn(3, 16))
            self.expert = nn.ModuleList(cases.Attending(16) for _ in range(2))

        def tokens(self, images: Tensor) -> Tensor:
            b = len(images)
            seen = self.tower(super().tokens(images.flatten(0, 1)[:, None])).reshape(b, -1, 16)
            return torch.cat([self.prompt.expand(b, -1, -1), seen], 1)

        def run(self, hidden: Tensor) -> Tensor:
            action = self.prompt.expand(len(hidden), -1, -1)
            for block in self.expert:
                action = block(action)
            return super().run(hidden) + self.head(action[:, -1])

    batch = {"images": torch.rand(2, 2, 3, 24, 32), "action": torch.zeros(2, 3)}
    found = inspect_policy(Towered(), batch)
    assert options(found)["tokens"] == Span(3, 24)
    assert options(found)["grid"] == (2, 3, 4)
    assert {stack.path: stack.sees for stack in found.stacks} == {"blocks": True, "tower": False, "expert": False}


def test_blocks_that_end_in_their_norms_are_tapped_themselves(make_patches: Callable[..., Any]) -> None:
    policy, batch = make_patches("post-norm")
    found = inspect_policy(policy, batch)
    assert found.taps[1].path == "blocks.1"
    assert found.adapter.options.norm is None
    assert any("final_norm" in note for note in found.notes)


def test_class_tokens_are_left_out(make_patches: Callable[..., Any]) -> None:
    policy, batch = make_patches("class tokens")
    found = inspect_policy(policy, batch)
    assert options(found)["tokens"] == (Span(1, 12), Span(14, 12))
    assert options(found)["grid"] == (2, 3, 4)
    assert found.hits == 1.0


# ------------------------------------------------------------------------------------------------- images and loss


def test_cameras_with_keys_of_their_own(cases: Any) -> None:
    policy, batch = cases.Cameras(), tiny_batch()
    keys = ("observation.images.left", "observation.images.wrist")
    batch.update(zip(keys, batch.pop("images").unbind(1), strict=True))
    found = inspect_policy(policy, batch)
    assert options(found)["loss"] == "losses.total"
    assert any("several scalars" in note for note in found.notes)
    wrapped = pasted(found, policy)
    loss = wrapped(batch)["losses"]["total"]
    metrics = wrapped.spatial_forcing.metrics()
    assert float(loss.detach()) == pytest.approx(metrics["action_loss"] + 0.5 * metrics["sf_loss"], rel=1e-5)


def test_fault_25_cameras_are_in_the_order_of_their_tokens(cases: Any) -> None:
    batch = tiny_batch()
    left, wrist = batch.pop("images").unbind(1)
    found = inspect_policy(
        cases.Cameras(), {"observation.images.wrist": wrist, "observation.images.left": left, **batch}
    )
    assert options(found)["images"] == ("observation.images.left", "observation.images.wrist")
    assert options(found)["tokens"] == Span(0, 32)


def test_examples_of_starvla(cases: Any) -> None:
    images = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8)
    examples = [{"image": [p.numpy() for p in row], "action": [0.0, 1.0, 2.0]} for row in images]
    found = inspect_policy(cases.Examples(), examples)
    assert options(found) == {
        "blocks": "inner.blocks", "tokens": Span(0, 32), "grid": (2, 4, 4), "images": "examples.*.image",
        "pixels": "0-255",
    }  # fmt: skip


def test_images_of_pillow(cases: Any) -> None:
    image = pytest.importorskip("PIL.Image")

    class Opening(cases.Examples):
        def forward(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            return super().forward([{**e, "image": [np.array(e["image"])]} for e in examples])

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    examples = [{"image": image.fromarray(p), "action": [0.0, 1.0, 2.0]} for p in images]
    found = inspect_policy(Opening(), examples)
    assert options(found)["images"] == "examples.*.image"
    assert options(found)["grid"] == (1, 4, 4)
    assert np.array_equal(np.array(examples[0]["image"]), images[0])


@pytest.mark.parametrize("layout", ["(b v) c h w", "(v b) c h w", "b (v c) h w"])
def test_views_among_samples_or_channels(cases: Any, layout: str) -> None:
    class Flat(cases.Patches):
        def forward(self, images: Tensor, action: Tensor) -> Tensor:
            if layout == "b (v c) h w":  # with three more channels for each view, as towers of two kinds want them
                views = images.reshape(2, 2, 6, 24, 32)[:, :, :3]
            elif layout == "(b v) c h w":
                views = images.reshape(2, 2, 3, 24, 32)
            else:
                views = images.reshape(2, 2, 3, 24, 32).transpose(0, 1)
            return super().forward(views * 0.5 + 0.5, action)

    shape = (2, 12, 24, 32) if layout == "b (v c) h w" else (4, 3, 24, 32)
    policy = Flat(nn.ModuleList(cases.Attending(16) for _ in range(2)))
    found = inspect_policy(policy, {"images": torch.rand(shape) * 2 - 1, "action": torch.zeros(2, 3)})
    assert options(found)["layout"] == layout
    assert options(found)["grid"] == (2, 3, 4)
    assert options(found)["pixels"] == "[-1,1]"
    assert options(found).get("channels") == ((0, 1, 2) if layout == "b (v c) h w" else None)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_could_not_be_verified_is_not_judged(tiny: Callable[..., Any], frozen: bool) -> None:
    policy = tiny(checkpointing="reentrant")
    if frozen:
        policy.embed.requires_grad_(False)
        policy.connector = nn.Linear(16, 16)
    found = inspect_policy(policy, tiny_batch())
    assert [tap.trained for tap in found.taps] == [True, None, None, None]
    assert [bool(tap.gradient) for tap in found.taps] == [True] * 4
    assert any("could not be verified: " in note for note in found.notes)
    assert not any("trains nothing" in note or "reaches no trainable" in note for note in found.notes)


def test_the_images_may_be_named(tiny: Callable[..., Any]) -> None:
    batch = tiny_batch()
    batch["images_of_yesterday"] = batch["images"].clone()
    assert options(inspect_policy(tiny(), batch, images=["images"]))["images"] == "images"
    with pytest.raises(ViewsError, match=r"'state' does not look like images: \(2, 3\) float32"):
        inspect_policy(tiny(), batch, images=["state"])
    with pytest.raises(ViewsError, match="images='pixels' is not in the batch"):
        inspect_policy(tiny(), batch, images=["pixels"])
    found = inspect_policy(tiny(), batch, images=["images_of_yesterday"])
    assert any("moves no token" in note for note in found.notes)
    assert found.missing == ("blocks", "tokens", "grid", "images", "pixels")
    assert "tokens=...," in found.snippet()
    with pytest.raises(AdapterError, match="has not found blocks, tokens"):
        _ = found.adapter


def test_images_that_the_policy_resizes(cases: Any) -> None:
    class Resizing(cases.Patches):
        def tokens(self, images: Tensor) -> Tensor:
            small = nn.functional.interpolate(images.flatten(0, 1), (24, 32), mode="bilinear", antialias=True)
            return super().tokens(small.reshape(*images.shape[:3], 24, 32))

    policy = Resizing(nn.ModuleList(cases.Attending(16) for _ in range(2)))
    found = inspect_policy(policy, {"images": torch.rand(2, 2, 3, 50, 70), "action": torch.zeros(2, 3)})
    assert options(found)["grid"] == (2, 3, 4)
    assert options(found)["resize"] == (51, 72)
    pasted(found, policy)(torch.rand(2, 2, 3, 50, 70), torch.zeros(2, 3))


def test_an_unknown_normalization_is_left_to_the_user(tiny: Callable[..., Any]) -> None:
    batch = tiny_batch()
    batch["images"] = batch["images"] * 40 - 7
    found = inspect_policy(tiny(), batch)
    assert found.missing == ("pixels",)
    assert any("MeanStd" in note for note in found.notes)


@pytest.mark.parametrize(("make", "where"), [(lambda x: x, "outside"), (lambda x: {"logits": x}, "outside")])
def test_a_policy_without_a_loss(cases: Any, make: Callable[[Tensor], Any], where: str) -> None:
    class Predicting(cases.Patches):
        def forward(self, images: Tensor) -> Any:
            return make(self.run(self.tokens(images)))

    policy = Predicting(nn.ModuleList(cases.Attending(16) for _ in range(2)))
    found = inspect_policy(policy, torch.rand(2, 2, 3, 24, 32))
    assert options(found)["loss"] == where
    assert any("loss='outside'" in note for note in found.notes)
    assert all(tap.gradient is None and tap.trained for tap in found.taps)


# -------------------------------------------------------------------------------------------------------- no trace


def test_nothing_is_left_behind(tiny: Callable[..., Any]) -> None:
    policy = tiny().eval()
    policy.blocks[0].train()
    policy.noisy = nn.BatchNorm1d(3)
    embed = policy.state_proj.forward
    policy.state_proj.forward = lambda state: embed(policy.noisy(state))
    kept = torch.ones_like(policy.embed.weight)
    policy.embed.weight.grad = kept
    batch = tiny_batch()
    before = copy.deepcopy((dict(policy.state_dict()), batch))
    modes = [module.training for module in policy.modules()]
    torch.manual_seed(3)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    inspect_policy(policy, batch)
    assert torch.equal(torch.rand(2), drawn)
    assert policy.embed.weight.grad is kept
    assert bool((kept == 1).all())
    assert policy.head.weight.grad is None
    assert [module.training for module in policy.modules()] == modes
    torch.testing.assert_close((dict(policy.state_dict()), batch), before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in policy.modules())


def test_lora_wrappers_are_ignored(tiny: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    policy = tiny()
    config = peft.LoraConfig(target_modules=["qkv", "out"], r=2)
    found = inspect_policy(peft.get_peft_model(policy, config), tiny_batch())
    assert options(found)["blocks"] == "blocks"
    assert [tap.trained for tap in found.taps] == [False, True, True, True]


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_policy_without_blocks_is_an_error() -> None:
    with pytest.raises(AdapterError, match="Linear holds no row of two or more blocks"):
        inspect_policy(nn.Linear(2, 2), torch.zeros(2, 2))


def test_a_batch_that_forward_does_not_take_is_an_error(make_patches: Callable[..., Any]) -> None:
    policy, batch = make_patches("attending")
    with pytest.raises(ConfigError, match=r"Patches.forward\(images, action\) cannot be called with this batch"):
        inspect_policy(policy, batch["images"])
    assert inspect_policy(policy, (batch["images"], batch["action"])).hits == 1.0


def test_a_batch_without_images_is_reported(cases: Any) -> None:
    class Blind(cases.Patches):
        def forward(self, state: Tensor) -> Tensor:
            return self.run(state).mean()

    found = inspect_policy(Blind(nn.ModuleList(cases.Attending(16) for _ in range(2))), torch.rand(2, 5, 16))
    assert any("Nothing in the batch looks like images" in note for note in found.notes)


def test_options_are_written_as_python() -> None:
    given = {
        "tokens": (Span(1, 2), Span(-4, 2)),
        "images": ("a.b",),
        "pixels": MeanStd((0.0,) * 3, (1.0,) * 3),
        "grid": (1, 2, 2),
    }
    text = Inspection("P", (), (), given, None, ()).snippet()
    names: dict[str, Any] = {"SpatialForcing": SimpleNamespace(wrap=lambda *args, **kw: None)}
    body = text.partition("adapter = GenericAdapter(")[2].partition("\n)")[0]
    found = eval(f"dict({body})", {"Span": Span, "MeanStd": MeanStd, "ImageTokens": ImageTokens, **names})
    assert found == given
    assert "from sfkit import GenericAdapter, Span, SpatialForcing\nfrom sfkit.policies.generic import MeanStd" in text


def test_it_is_used_where_wrap_would_be(tiny: Callable[..., Any]) -> None:
    policy = tiny()
    SpatialForcing.wrap(policy.train(), PatchTeacher(), adapter=inspect_policy(policy, tiny_batch()).adapter)
    assert isinstance(policy, TinyPolicy)
    with pytest.raises(WrapError, match="wrapped already"):
        inspect_policy(policy, tiny_batch())
