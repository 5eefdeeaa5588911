"""The policy. Upstream: models_pytorch/pi0_pytorch.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import openpi.models_pytorch.preprocessing_pytorch as _preprocessing
from openpi.models.model import Observation
from openpi.models.pi0_config import Pi0Config
from openpi.models_pytorch.gemma_pytorch import (
    GemmaForCausalLM,
    GemmaModel,
    PaliGemmaForConditionalGeneration,
    PaliGemmaModel,
    PaliGemmaWithExpertModel,
    SiglipVisionModel,
)


class PI0Pytorch(nn.Module):
    """``forward(observation, actions, noise=None, time=None) -> (b, horizon, dim)`` losses of the flow."""

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config, self.pi05 = config, config.pi05
        width, half = config.width, config.width // 2
        heads, head_dim = 2, 8
        texts = SimpleNamespace(hidden_size=width, num_hidden_layers=config.num_layers)
        images = SimpleNamespace(patch_size=config.patch, image_size=config.image_size, hidden_size=half)
        inner = PaliGemmaModel(
            SiglipVisionModel(half, 1, config.patch, config.image_size),
            GemmaModel(width, config.num_layers, heads, head_dim, words=32),
            SimpleNamespace(text_config=texts, vision_config=images),
        )
        # pi0.5 alone conditions its expert; the prefix is never conditioned.
        expert = GemmaModel(half, config.num_layers, heads, head_dim, cond_dim=half if self.pi05 else None)
        self.paligemma_with_expert = PaliGemmaWithExpertModel(
            PaliGemmaForConditionalGeneration(inner), GemmaForCausalLM(expert), config.dtype
        )
        self.action_in_proj = nn.Linear(config.action_dim, half)
        self.action_out_proj = nn.Linear(half, config.action_dim)
        if self.pi05:
            self.time_mlp_in, self.time_mlp_out = nn.Linear(half, half), nn.Linear(half, half)
        else:
            self.state_proj = nn.Linear(config.action_dim, half)
            self.action_time_mlp_in, self.action_time_mlp_out = nn.Linear(2 * half, half), nn.Linear(half, half)
        if config.pytorch_compile_mode is not None:  # before anybody can wrap the policy
            compiled = torch.compile(self.sample_actions, mode=config.pytorch_compile_mode)
            self.sample_actions = compiled  # type: ignore[method-assign]
        self.gradient_checkpointing_enabled = False

    def gradient_checkpointing_enable(self) -> None:
        """Checkpoint around the decoder as well, so that its blocks are checkpointed twice; the trainer does so."""
        self.gradient_checkpointing_enabled = True

    def _apply_checkpoint(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.gradient_checkpointing_enabled and self.training:
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return function(*arguments)

    def _preprocess_observation(self, observation: Observation, *, train: bool = True) -> Observation:
        size = self.config.image_size
        return _preprocessing.preprocess_observation_pytorch(observation, train=train, image_resolution=(size, size))

    def embed_prefix(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Tokens ``(b, n, d)`` and their mask: every camera's, masked or not, then the prompt's. No token in front."""
        tokens, masks = [], []
        for image, mask in zip(observation.images.values(), observation.image_masks.values(), strict=True):
            tokens.append(self._apply_checkpoint(self.paligemma_with_expert.embed_image, image))
            masks.append(mask[:, None].expand(-1, tokens[-1].shape[1]))
        words = cast(nn.Embedding, self.paligemma_with_expert.paligemma.language_model.embed_tokens)
        tokens.append(
            self._apply_checkpoint(lambda ids: words(ids) * self.config.width**0.5, observation.tokenized_prompt)
        )
        masks.append(observation.tokenized_prompt_mask)
        return torch.cat(tokens, 1), torch.cat(masks, 1)

    def embed_suffix(self, state: Tensor, noisy: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """The expert's tokens, and what conditions its norms."""
        half = self.config.width // 2
        waves = time[:, None] * torch.logspace(0, 2, half // 2, device=time.device)
        embedded = torch.cat([waves.sin(), waves.cos()], -1)
        actions = self._apply_checkpoint(self.action_in_proj, noisy)
        if self.pi05:
            return actions, F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedded))))
        both = torch.cat([actions, embedded[:, None].expand_as(actions)], -1)
        actions = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        return torch.cat([self.state_proj(state)[:, None], actions], 1), None

    def forward(
        self, observation: Observation, actions: Tensor, noise: Tensor | None = None, time: Tensor | None = None
    ) -> Tensor:
        """Squared error of the flow, for each element: the trainer takes the mean."""
        # Always augmented, also in eval mode, as upstream.
        seen = self._preprocess_observation(observation, train=True)
        if noise is None:
            noise = torch.randn_like(actions)
        if time is None:
            time = torch.rand(len(actions), device=actions.device) * 0.999 + 0.001
        mixed = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        return F.mse_loss(noise - actions, self._flow(seen, mixed, time), reduction="none")

    def _flow(self, seen: Observation, noisy: Tensor, time: Tensor) -> Tensor:
        prefix, mask = self.embed_prefix(seen)
        suffix, condition = self.embed_suffix(seen.state, noisy, time)
        dtype = self.paligemma_with_expert.dtype
        prefix, suffix = prefix.to(dtype), suffix.to(dtype)
        attend = _attention(mask, suffix.shape[1])

        def decode(prefix: Tensor, suffix: Tensor, attend: Tensor, condition: Tensor | None) -> Tensor:
            # Called by its forward: hooks on this module stay silent as well.
            return self.paligemma_with_expert.forward([prefix, suffix], attend, [None, condition])[1]

        hidden = self._apply_checkpoint(decode, prefix, suffix, attend, condition)
        flow: Tensor = self._apply_checkpoint(self.action_out_proj, hidden[:, -self.config.action_horizon :].float())
        return flow

    @torch.no_grad()
    def sample_actions(
        self, device: str | torch.device, observation: Observation, noise: Tensor | None = None, num_steps: int = 10
    ) -> Tensor:
        """Actions by Euler steps (upstream keeps the prefix's keys and values between the steps)."""
        if noise is None:
            noise = torch.randn(len(observation.state), self.config.action_horizon, self.config.action_dim).to(device)
        seen = self._preprocess_observation(observation, train=False)
        actions = noise
        for step in range(num_steps):
            time = torch.full((len(noise),), 1 - step / num_steps, device=noise.device)
            actions = actions - self._flow(seen, actions, time) / num_steps
        return actions


def _attention(prefix: Tensor, suffix: int) -> Tensor:
    """Additive ``(b, 1, n, n)`` mask: prefix among itself, suffix to everything."""
    b, n = prefix.shape
    known = torch.cat([prefix, torch.ones(b, suffix, dtype=torch.bool, device=prefix.device)], 1)
    allowed = (known[:, None, :] & known[:, :, None]).clone()
    allowed[:, :n, n:] = False
    return torch.where(allowed[:, None], 0.0, -2.3819763e38)
