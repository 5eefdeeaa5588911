"""Tiny policies that run their blocks as published policies do, their adapters, and a teacher without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfkit.config import Options
from sfkit.errors import ViewsError
from sfkit.policies.base import AdapterOptions, ForwardCall, PolicyAdapter, TapPoint
from sfkit.policies.tokens import cut, tower_tokens
from sfkit.registry.component import Harmless
from sfkit.teachers.base import Teacher
from sfkit.views.types import FeatureMap, Views


class Block(nn.Module):
    """A pre-norm transformer block with full attention and a mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.post_layernorm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, hidden: Tensor, attend: Tensor) -> Tensor:
        """``hidden (b, n, d)`` to ``(b, n, d)``; ``attend (b, n, n)`` is True where a query sees a key."""
        q, k, v = self.qkv(self.input_layernorm(hidden)).chunk(3, -1)
        hidden = hidden + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=attend))
        update: Tensor = self.mlp(self.post_layernorm(hidden))
        update += hidden  # in place, as SmolVLA does: a tap on the MLP's output would see the next state
        return update


class TinyPolicy(nn.Module):
    """A LeRobot-like policy: ``forward(batch, reduction="mean") -> (loss, info)``.

    Sequence: visual tokens of each view, then one state token that image tokens never attend to; the action is read
    from the state token. ``batch`` holds ``images (b, v, 3, h, w)`` in [0, 1], ``state (b, d)``, ``action (b, d)`` and
    optionally ``present (b, v)``, ``depth``, ``intrinsics`` and ``world_from_camera``; for the teacher alone
    ``future (b, t, v, 3, h, w)``, the next frames.

    Args:
        dim: Width.
        num_layers: Blocks.
        patch: Patch side in pixels.
        state_dim: Size of state and action.
        fused: Never call a block's own forward, as pi0 and SmolVLA do (hooks on blocks stay silent).
        checkpointing: ``"none"``, ``"non-reentrant"`` or ``"reentrant"`` activation checkpointing of each block.
        tower_per_view: Run the vision tower camera by camera, as pi0 and SmolVLA do.
    """

    def __init__(
        self, dim: int = 16, num_layers: int = 3, patch: int = 8, state_dim: int = 3, *, fused: bool = True,
        checkpointing: str = "none", tower_per_view: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.fused, self.checkpointing, self.tower_per_view = fused, checkpointing, tower_per_view
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.connector = nn.Identity()
        self.state_proj = nn.Linear(state_dim, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, state_dim)

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Compute the action loss, ``()`` or (``reduction="none"``) ``(b,)``, one value for each sample."""
        # As in flow matching, each forward draws noise: alignment must leave the global random state alone.
        noise = torch.randn_like(batch["action"])
        prediction = self.act(batch) + 0.0 * noise
        losses = (prediction - batch["action"]).square().mean(-1)
        loss = losses.mean() if reduction == "mean" else losses
        return loss, {"loss": losses.mean().item()}

    def act(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict the action ``(b, state_dim)``."""
        hidden, attend = self._embed(batch)
        for block in self.blocks:
            hidden = self._run(block, hidden, attend)
        action: Tensor = self.head(self.norm(hidden)[:, -1])
        return action

    def _embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sequence ``(b, n, d)``, and which tokens each token sees, ``(b, n, n)``."""
        images = batch["images"] * 2 - 1
        b, v = images.shape[:2]
        parts = images.unbind(1) if self.tower_per_view else [images.flatten(0, 1)]
        visual = torch.stack([self.connector(self.embed(part).flatten(2).transpose(1, 2)) for part in parts], 1)
        visual = visual.reshape(b, -1, self.embed.out_channels)
        hidden = torch.cat([visual, self.state_proj(batch["state"])[:, None]], 1)
        n = hidden.shape[1]
        attend = torch.ones(b, n, n, dtype=torch.bool, device=hidden.device)
        attend[:, :-1, -1] = False  # image tokens do not see the state
        if "present" in batch:
            columns = batch["present"].repeat_interleave((n - 1) // v, dim=1)
            attend[:, :, :-1] &= columns[:, None]
            attend |= torch.eye(n, dtype=torch.bool, device=hidden.device)
        return hidden, attend

    def _run(self, block: nn.Module, hidden: Tensor, attend: Tensor) -> Tensor:
        """One block: ``hidden (b, n, d)`` and ``attend (b, n, n)`` to ``(b, n, d)``."""
        call = block.forward if self.fused else block
        if self.checkpointing != "none" and self.training:
            call = partial(checkpoint, call, use_reentrant=self.checkpointing == "reentrant")
        result: Tensor = call(hidden, attend)
        return result


class TinyAdapter(PolicyAdapter):
    """Adapter of :class:`TinyPolicy`."""

    name = "tiny"
    Options: ClassVar[type[Options]] = AdapterOptions
    policy: TinyPolicy

    @property
    def num_layers(self) -> int:
        return len(self.policy.blocks)

    def dim(self, layer: int) -> int:
        return self.policy.embed.out_channels

    def tap(self, layer: int) -> TapPoint:
        if layer == self.num_layers:
            return TapPoint(self.policy.norm, "norm")
        block = self.policy.blocks[layer]
        return TapPoint(block.input_layernorm, f"blocks.{layer}.input_layernorm")  # type: ignore[arg-type]

    def views(self, call: ForwardCall) -> Views:
        batch = call.arguments["batch"]
        images = batch["images"]
        b, v, _, h, w = images.shape
        present = batch.get("present", torch.ones(b, v, dtype=torch.bool, device=images.device))
        names = tuple(f"cam{i}" for i in range(v))
        geometry = {key: batch.get(key) for key in ("depth", "intrinsics", "world_from_camera")}
        return Views(images, present[:, :, None, None].expand(b, v, h, w), names, **geometry)

    def future_views(self, call: ForwardCall, steps: int) -> Views:
        frames = call.arguments["batch"].get("future")
        if frames is None or steps > frames.shape[1]:
            raise ViewsError(f"The batch holds no frame {steps} steps ahead.", "Add it under the key 'future'.")
        return replace(self.views(call), images=frames[:, steps - 1])

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """Of ``(b, n, d)``, which begins with the visual tokens, these: ``(b, v, gh, gw, d)``."""
        grid = self._grid(views)
        b, v = views.images.shape[:2]
        tokens = cut(hidden, 0, v * grid[0] * grid[1], self.options.token_shift).reshape(b, v, *grid, -1)
        return FeatureMap(tokens, views.token_mask(grid))

    def encoder_tap(self) -> TapPoint:
        return TapPoint(self.policy.connector, "connector", all_calls=True)

    def encoder_dim(self) -> int:
        return self.policy.embed.out_channels

    def encoder_tokens(self, states: Sequence[Tensor], views: Views) -> FeatureMap:
        return tower_tokens(states, views, self._grid(views))

    def attention_heads(self, block: int) -> tuple[int, int]:
        return 1, self.dim(block)

    def attention_tokens(self, hidden: Tensor, block: int, views: Views) -> FeatureMap:
        """Queries and keys ``(b, v, gh, gw, 2 * d)`` from ``(b, n, d)``."""
        tokens = self.visual_tokens(hidden, views)
        own = cast("Block", self.policy.blocks[block - 1])
        queries, keys, _ = own.qkv(own.input_layernorm(tokens.values)).chunk(3, -1)
        return FeatureMap(torch.cat([queries / self.dim(block) ** 0.5, keys], -1), tokens.mask)

    def _grid(self, views: Views) -> tuple[int, int]:
        side = self.policy.embed.kernel_size[0]
        return views.size[0] // side, views.size[1] // side

    def with_loss(
        self, output: tuple[Tensor, dict[str, float]], loss: Tensor, logs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """``loss ()`` in the place of the policy's own, and ``logs`` beside the policy's."""
        return loss, {**output[1], **{key: float(value) for key, value in logs.items()}}


def tiny_batch(
    b: int = 2, v: int = 2, size: int = 32, state_dim: int = 3, *, geometry: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A batch for :class:`TinyPolicy`, with depth, intrinsics and poses if ``geometry``."""
    g = torch.Generator().manual_seed(seed)
    batch = {
        "images": torch.rand(b, v, 3, size, size, generator=g),
        "state": torch.randn(b, state_dim, generator=g),
        "action": torch.randn(b, state_dim, generator=g),
    }
    if geometry:
        k = torch.tensor([[size, 0.0, (size - 1) / 2], [0.0, size, (size - 1) / 2], [0.0, 0.0, 1.0]])
        batch["depth"] = 0.5 + torch.rand(b, v, size, size, generator=g)
        batch["intrinsics"] = k.expand(b, v, 3, 3)
        batch["world_from_camera"] = torch.eye(4).expand(b, v, 4, 4)
    return batch


class OutsidePolicy(TinyPolicy):
    """Its training loop computes the loss, as OpenVLA-OFT's does under an L1 head; no loop reads the loss here."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, object]:  # type: ignore[override]
        """``actions``: a tuple of one ``(b, state_dim)``; and ``loss ()``, which means nothing."""
        prediction = self.act(batch)
        return {"loss": prediction.square().mean(), "actions": (prediction,), "steps": 1}


class OutsideAdapter(TinyAdapter):
    """Adapter of :class:`OutsidePolicy`."""

    loss_outside = True

    def with_loss(self, output: object, loss: Tensor, logs: Mapping[str, Tensor]) -> NoReturn:
        """Never called with a ``loss ()``."""
        raise AssertionError("nobody reads the loss in this output")


def loop_loss(output: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
    """The loop's loss ``()`` from the output of forward."""
    return F.l1_loss(output["actions"][0], batch["action"])


class PatchTeacherOptions(Options):
    """Options of :class:`PatchTeacher`."""

    dim: int = Field(default=12, ge=1, description="Feature width.")
    grid: int | None = Field(default=None, ge=1, description="Side of its own grid; the student's by default.")
    joint: Harmless[bool] = Field(default=False, description="Mix views, as a joint multi-view teacher does.")


class PatchTeacher(Teacher):
    """A frozen random linear map of pooled patches; with ``joint``, plus the mean over the views of a sample.

    The queries and keys of a block, of two heads, are its features.
    """

    name = "patch"
    license = "Apache-2.0"
    Options: ClassVar[type[Options]] = PatchTeacherOptions
    options: PatchTeacherOptions

    @property
    def num_layers(self) -> int:
        return 3

    def dim(self, layer: int) -> int:
        return self.options.dim

    def load(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)  # global on purpose: the core must guard the caller's random state
        return nn.Linear(3, self.options.dim)

    def encode(
        self, model: nn.Module | None, views: Views, layers: Sequence[int], grid: tuple[int, int]
    ) -> list[FeatureMap]:
        assert model is not None
        own = (self.options.grid, self.options.grid) if self.options.grid else grid
        b, v = views.images.shape[:2]
        pooled = F.adaptive_avg_pool2d(views.images.flatten(0, 1), own).permute(0, 2, 3, 1)
        values = model(pooled).reshape(b, v, *own, -1)
        if self.options.joint:
            values = values + values.mean(1, keepdim=True)
        mask = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
        return [FeatureMap(values * layer, mask) for layer in layers]

    def attention_heads(self, block: int) -> tuple[int, int]:
        return 2, self.options.dim // 2

    def encode_with_attention(
        self,
        model: nn.Module | None,
        views: Views,
        layers: Sequence[int],
        blocks: Sequence[int],
        grid: tuple[int, int],
    ) -> list[FeatureMap]:
        maps = self.encode(model, views, [*layers, *blocks], grid)
        doubled = [FeatureMap(torch.cat([one.values, one.values], -1), one.mask) for one in maps[len(layers) :]]
        return [*maps[: len(layers)], *doubled]
