"""Tiny real policies and the helpers that the tests share (as fixtures: test folders are no packages here)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

KINDS = ("smolvla", "pi0", "pi05", "pi0_fast")


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sfkit_lerobot.testing import tiny_smolvlm

    return tiny_smolvlm(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture
def build(vlm: Path) -> Callable[..., Any]:
    """``build(kind, **options)``: a tiny policy, always with the same weights."""
    from sfkit_lerobot.testing import tiny_pi0, tiny_pi0_fast, tiny_pi05, tiny_smolvla

    builders = {
        "smolvla": functools.partial(tiny_smolvla, vlm),
        "pi0": tiny_pi0,
        "pi05": tiny_pi05,
        "pi0_fast": tiny_pi0_fast,
    }

    def build(kind: str, **options: Any) -> Any:
        torch.manual_seed(0)
        return builders[kind](**options)

    return build


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wrap() -> Callable[..., Any]:
    """``wrap(policy, **arguments)``: aligned with geometry, calibrated for the batches of ``tiny_lerobot_batch``."""
    from sfkit_lerobot.testing import tiny_rig

    from sfkit import SpatialForcing

    def wrap(policy: Any, teacher: Any = "geometry", **arguments: Any) -> Any:
        rig_of = getattr(policy, "get_base_model", lambda: policy)()
        return SpatialForcing.wrap(policy, teacher, **{"cameras": tiny_rig(rig_of), **arguments})

    return wrap


@pytest.fixture
def adapter_of() -> Callable[..., Any]:
    """``adapter_of(policy, **options)``: its adapter, with the cameras of ``tiny_rig``."""
    from sfkit_lerobot import PI0Adapter, PI0FastAdapter, PI05Adapter, SmolVLAAdapter
    from sfkit_lerobot.testing import tiny_rig

    adapters = {
        "smolvla": SmolVLAAdapter,
        "pi0": PI0Adapter,
        "pi05": PI05Adapter,
        "pi0_fast": PI0FastAdapter,
    }

    def adapter_of(policy: Any, **options: Any) -> Any:
        adapter = adapters[policy.config.type](policy, options)
        adapter.cameras = tiny_rig(policy)
        return adapter

    return adapter_of


@pytest.fixture
def views_of() -> Callable[..., Any]:
    """``views_of(adapter, batch)``: what the student sees of a batch."""
    from sfkit.policies.base import ForwardCall

    def views_of(adapter: Any, batch: dict[str, Any]) -> Any:
        with torch.no_grad():
            return adapter.views(ForwardCall({"batch": batch}, None))

    return views_of


@pytest.fixture
def tapped(views_of: Callable[..., Any]) -> Callable[..., Any]:
    """``tapped(adapter, batch, layer)``: the hidden state, the views and the visual tokens of a forward."""
    from sfkit.training.taps import Tap

    def tapped(adapter: Any, batch: dict[str, Any], layer: int) -> Any:
        tap = Tap(layer, adapter.tap(layer))
        tap.arm()
        torch.manual_seed(1)
        try:
            adapter.policy.forward(dict(batch))
            (hidden,) = tap.take()
        finally:
            tap.remove()
        views = views_of(adapter, batch)
        return hidden, views, adapter.visual_tokens(hidden, views)

    return tapped


def _prefix(policy: Any, kind: str, batch: dict[str, Any]) -> Any:
    text = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    if kind == "smolvla":
        pictures, masks = policy.prepare_images(batch)
        return policy.model.embed_prefix(pictures, masks, *text, state=policy.prepare_state(batch))
    pictures, masks = policy._preprocess_images(batch)
    if kind == "pi0_fast":
        return policy.model.embed_prefix_fast(
            pictures, masks, *text, batch["action.tokens"], batch["action.token_mask"]
        )[:3]
    return policy.model.embed_prefix(pictures, masks, *text)


@pytest.fixture
def decoder_run() -> Callable[..., Any]:
    """``decoder_run(policy, kind, decoder, batch)``: Hugging Face's own forward over the prefix, with all states."""
    return _decoder_run


def _decoder_run(policy: Any, kind: str, decoder: Any, batch: dict[str, Any]) -> Any:
    from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

    embeddings, pad, attend = _prefix(policy, kind, batch)
    # pi0-FAST says for each pair of tokens who sees whom, the others for each token where a block begins.
    seen = attend if attend.ndim == 3 else make_att_2d_masks(pad, attend)
    decoder.config._attn_implementation = "eager"
    with torch.no_grad():
        return decoder(
            inputs_embeds=embeddings,
            attention_mask=prepare_attention_masks_4d(seen),
            position_ids=pad.cumsum(1) - 1,
            output_hidden_states=True,
            use_cache=False,
        )


@pytest.fixture
def gradient_figures() -> Callable[..., Any]:
    """``gradient_figures(policy, batch)``: ratio and cosine of both gradients, as measured, and by autograd.

    The policy is wrapped with one pair and ``health={"every": 1}``, and was trained once before.
    """
    from sfkit import SpatialForcing

    def gradient_figures(policy: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        handle = SpatialForcing.of(policy)
        point = handle.adapter.tap(handle.config.pairs[0].student_layer)
        modules = [point.module, *point.extra_modules]
        with SpatialForcing.disabled(policy):
            action = _gradients(policy, batch, modules)
        total = _gradients(policy, batch, modules)
        found = handle.health()
        pull = [both - own for both, own in zip(total, action, strict=True)]
        # Channels are last in a sequence (b, n, d), and behind the samples in maps (b, d, h, w).
        there = [one.ne(0).any(1 if one.ndim == 4 else -1, keepdim=True) for one in pull]
        pushed = torch.cat([torch.where(where, own, 0).flatten() for where, own in zip(there, action, strict=True)])
        pulled = torch.cat([one.flatten() for one in pull])
        true = [pulled.norm() / pushed.norm(), torch.nn.functional.cosine_similarity(pulled, pushed, dim=0)]
        return torch.tensor([found.ratio, found.cosine]), torch.stack(true)

    return gradient_figures


def _gradients(policy: Any, batch: dict[str, Any], modules: list[Any]) -> list[torch.Tensor]:
    """The gradient of the loss at the first input of each module, in float32."""
    seen: list[torch.Tensor] = [torch.zeros(()) for _ in modules]

    def watch(index: int, tensor: torch.Tensor) -> None:
        seen[index] = torch.zeros_like(tensor, dtype=torch.float32)
        tensor.register_hook(lambda gradient: seen.__setitem__(index, gradient.detach().float().clone()))

    def hook(index: int) -> Callable[..., None]:
        return lambda _, args, kwargs: watch(index, [*args, *kwargs.values()][0])

    hooks = [module.register_forward_pre_hook(hook(k), with_kwargs=True) for k, module in enumerate(modules)]
    torch.manual_seed(3)
    policy.zero_grad()
    try:
        policy.forward(dict(batch))[0].backward()
    finally:
        for registered in hooks:
            registered.remove()
    return seen
