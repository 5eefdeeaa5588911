"""Two Gemma decoders side by side, whose blocks are never called, and PaliGemma's vision tower.

Upstream: models_pytorch/gemma_pytorch.py and the files of models_pytorch/transformers_replace.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GemmaRMSNorm(nn.Module):
    """Takes a condition and returns a gate beside the normed input; stock transformers does neither."""

    def __init__(self, dim: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.dense = None if cond_dim is None else nn.Linear(cond_dim, 3 * dim)
        if self.dense is None:
            self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        normed = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        if cond is None or self.dense is None:
            return (normed * (1 + self.weight.float())).to(x.dtype), None
        scale, shift, gate = self.dense(cond).unsqueeze(1).chunk(3, -1)
        return (normed * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def _gated_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return x + y if gate is None else x + y * gate


class GemmaAttention(nn.Module):
    """The projections; the attention itself is computed over both decoders at once, outside."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim, self.scaling = head_dim, head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)


class GemmaMLP(nn.Module):
    """Gated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)))


class GemmaDecoderLayer(nn.Module):
    """A block whose ``forward`` training never calls: a hook on it stays silent."""

    def __init__(self, dim: int, heads: int, head_dim: int, cond_dim: int | None) -> None:
        super().__init__()
        self.self_attn = GemmaAttention(dim, heads, head_dim)
        self.mlp = GemmaMLP(dim)
        self.input_layernorm = GemmaRMSNorm(dim, cond_dim)
        self.post_attention_layernorm = GemmaRMSNorm(dim, cond_dim)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not called by the policy in training."""
        raise AssertionError("the policy's training forward does not call its blocks")


class GemmaModel(nn.Module):
    """Embeddings, blocks and a norm; its ``forward`` is not called in training either."""

    def __init__(
        self, dim: int, num_layers: int, heads: int, head_dim: int, *, cond_dim: int | None = None, words: int = 0
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = SimpleNamespace(hidden_size=dim, num_hidden_layers=num_layers)
        self.embed_tokens = nn.Embedding(words, dim) if words else None
        self.layers = nn.ModuleList(GemmaDecoderLayer(dim, heads, head_dim, cond_dim) for _ in range(num_layers))
        self.norm = GemmaRMSNorm(dim, cond_dim)
        self.gradient_checkpointing = False


class SiglipEncoderLayer(nn.Module):
    """A pre-norm block of the vision tower."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        x = x + self.self_attn(normed, normed, normed, need_weights=False)[0]
        return cast(Tensor, x + self.mlp(self.layer_norm2(x)))


class SiglipVisionModel(nn.Module):
    """Images ``(b, 3, h, w)`` in [-1, 1] to tokens, as an output object."""

    def __init__(self, dim: int, num_layers: int, patch: int, size: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, patch, patch)
        self.position_embedding = nn.Parameter(torch.randn((size // patch) ** 2, dim) * 0.02)
        self.layers = nn.ModuleList(SiglipEncoderLayer(dim) for _ in range(num_layers))
        self.gradient_checkpointing = False

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        hidden = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.position_embedding
        hidden = hidden.to(next(self.layers.parameters()).dtype)  # the embedding stays in float32
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(last_hidden_state=hidden)


class PaliGemmaModel(nn.Module):
    """Holds vision tower, projector and language model under the names of transformers 4.53."""

    def __init__(self, vision_tower: SiglipVisionModel, language_model: GemmaModel, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = vision_tower
        self.multi_modal_projector = nn.Linear(
            vision_tower.patch_embedding.out_channels, config.text_config.hidden_size
        )
        self.language_model = language_model

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Tokens of one camera, not divided by the square root of the width, as stock transformers does."""
        return cast(Tensor, self.multi_modal_projector(self.vision_tower(pixel_values).last_hidden_state))


class PaliGemmaForConditionalGeneration(nn.Module):
    """The inner model, and short names for its parts."""

    def __init__(self, model: PaliGemmaModel) -> None:
        super().__init__()
        self.config = model.config
        self.model = model

    @property
    def language_model(self) -> GemmaModel:
        """Short for ``model.language_model``."""
        return self.model.language_model

    @property
    def vision_tower(self) -> SiglipVisionModel:
        """Short for ``model.vision_tower``."""
        return self.model.vision_tower


class GemmaForCausalLM(nn.Module):
    """The action expert, without embeddings of words."""

    def __init__(self, model: GemmaModel) -> None:
        super().__init__()
        self.model = model


class PaliGemmaWithExpertModel(nn.Module):
    """Prefix and suffix in two streams with one attention, block by block."""

    #: Parameters that stay in float32 when the rest is cast.
    KEPT = ("patch_embedding", "position_embedding", "input_layernorm", "post_attention_layernorm", "model.norm")

    def __init__(
        self, paligemma: PaliGemmaForConditionalGeneration, expert: GemmaForCausalLM, dtype: str = "float32"
    ) -> None:
        super().__init__()
        self.paligemma = paligemma
        self.gemma_expert = expert
        for name, parameter in self.named_parameters():
            if dtype == "bfloat16" and not any(part in name for part in self.KEPT):
                parameter.data = parameter.data.to(torch.bfloat16)

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in."""
        return cast(Any, self.paligemma.language_model.layers[0]).self_attn.q_proj.weight.dtype  # type: ignore[no-any-return]

    def embed_image(self, image: Tensor) -> Tensor:
        """Tokens of one camera."""
        return self.paligemma.model.get_image_features(image)

    def forward(self, streams: list[Tensor], attention_mask: Tensor, conditions: list[Tensor | None]) -> list[Tensor]:
        """Run both streams. In training each block is checkpointed, whether that was asked for or not."""
        models = [self.paligemma.language_model, self.gemma_expert.model]
        if self.training:
            self.gemma_expert.model.gradient_checkpointing = True
        forced = self.gemma_expert.model.gradient_checkpointing and self.training
        for index in range(len(models[0].layers)):
            arguments = (models, index, streams, attention_mask, conditions)
            streams = _checkpointed(_layer, *arguments) if forced else _layer(*arguments)
        return _checkpointed(_norms, models, streams, conditions) if forced else _norms(models, streams, conditions)


def _checkpointed(function: Any, *arguments: Any) -> list[Tensor]:
    return cast("list[Tensor]", checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def _layer(
    models: list[GemmaModel], index: int, streams: list[Tensor], mask: Tensor, conditions: list[Tensor | None]
) -> list[Tensor]:
    """One block of both streams: their submodules are called, the block is not."""
    layers = [cast(Any, model.layers[index]) for model in models]
    parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    gates = []
    for layer, hidden, condition in zip(layers, streams, conditions, strict=True):
        normed, gate = layer.input_layernorm(hidden, cond=condition)
        gates.append(gate)
        for name, found in parts.items():
            projected = getattr(layer.self_attn, f"{name}_proj")(normed)
            found.append(projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2))
    q, k, v = (torch.cat(found, 2) for found in parts.values())
    weights = (
        (q @ k.transpose(-1, -2) * layers[0].self_attn.scaling + mask).softmax(-1, dtype=torch.float32).to(v.dtype)
    )
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    outputs, start = [], 0
    for layer, hidden, condition, gate in zip(layers, streams, conditions, gates, strict=True):
        own = layer.self_attn.o_proj(mixed[:, start : start + hidden.shape[1]])
        start += hidden.shape[1]
        residual = _gated_residual(hidden, own, gate)
        normed, second_gate = layer.post_attention_layernorm(residual, cond=condition)
        outputs.append(_gated_residual(residual, layer.mlp(normed), second_gate))
    return outputs


def _norms(models: list[GemmaModel], streams: list[Tensor], conditions: list[Tensor | None]) -> list[Tensor]:
    triples = zip(models, streams, conditions, strict=True)
    return [model.norm(hidden, cond=condition)[0] for model, hidden, condition in triples]
