"""What stands around a policy of ``prismatic`` in a training script: batches, heads, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from tiny_prismatic import STOP, TinyConfig
from torch import Tensor, nn

from sfkit.views.resample import imagenet_normalized

Head = Literal["l1", "diffusion", "discrete"]
IGNORE = -100


def normalized(images: Tensor, *, fused: bool = True) -> Tensor:
    """Images ``(b, v, 3, h, w)`` in [0, 1] as upstream's image processor and collator hand them to the policy.

    Returns:
        ``(b, 6 v, h, w)``: for each view three channels for DINOv2, then three for SigLIP; if not ``fused``
        ``(b, 3 v, h, w)`` for SigLIP.
    """
    siglip = (images - 0.5) / 0.5
    parts = [imagenet_normalized(images), siglip] if fused else [siglip]
    return torch.cat(parts, 2).flatten(1, 2)


def perturbed(batch: Mapping[str, Any], view: int, box: tuple[slice, slice]) -> dict[str, Any]:
    """A copy of a batch in which one view's image is inverted inside a pixel box; for ``check_correspondence``."""
    images = batch["images"].clone()
    images[:, view, :, box[0], box[1]] = 1 - images[:, view, :, box[0], box[1]]
    fused = batch["pixel_values"].shape[1] == 6 * images.shape[1]
    return {**batch, "images": images, "pixel_values": normalized(images, fused=fused)}


def prismatic_batch(
    config: TinyConfig, *, b: int = 2, images: int = 1, text: int = 5, shorter: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """A batch, with ``images`` (before the processor) beside what upstream's collator makes.

    The last sample is ``shorter`` by so many words, and padded on the right as the collator does.
    """
    g = torch.Generator().manual_seed(seed)
    count, begin, pad = config.chunk * config.action_dim, config.action_begin, config.pad_token_id
    words = torch.randint(3, begin, (b, text), generator=g)
    actions = torch.randint(begin + 1, pad, (b, count), generator=g)
    ids = torch.cat([torch.ones(b, 1, dtype=torch.long), words, actions, torch.full((b, 1), STOP)], 1)
    labels = ids.clone()
    labels[:, : 1 + text] = IGNORE
    for tensor, filler in ((ids, pad), (labels, IGNORE)):
        tensor[-1] = torch.cat([tensor[-1, :1], tensor[-1, 1 + shorter :], tensor.new_full((shorter,), filler)])
    pixels = torch.rand(b, images, 3, config.image_size, config.image_size, generator=g)
    return {
        "input_ids": ids,
        "attention_mask": ids.ne(pad),
        "labels": labels,
        "images": pixels,
        "pixel_values": normalized(pixels, fused=config.fused),
        "actions": torch.rand(b, config.chunk, config.action_dim, generator=g) * 2 - 1,
        "proprio": torch.rand(b, config.proprio_dim, generator=g) * 2 - 1,
    }


class OFTHeads(Protocol):
    """The modules that OFT's script keeps beside the policy, and optimizes by themselves."""

    proprio_projector: nn.Module
    noisy_action_projector: nn.Module

    def parameters(self) -> Any:
        """What the script hands to the optimizer beside the policy's own."""

    def noise(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, actions with noise, and the token that says how much; from the global generator."""

    def predict(self, states: Tensor, head: Head) -> Tensor:
        """Actions or noise from the last hidden states of the action tokens ``(b, chunk * action_dim, d)``."""


class Heads(nn.Module):
    """Small ones, for the stand-in.

    Args:
        config: Of the policy.
        seed: Of the weights.
    """

    def __init__(self, config: TinyConfig, seed: int = 1) -> None:
        super().__init__()
        dim, per_step = config.hidden_size, config.hidden_size * config.action_dim
        self.chunk = config.chunk
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.action_head = nn.Sequential(nn.LayerNorm(per_step), nn.Linear(per_step, config.action_dim))
            self.proprio_projector = nn.Sequential(nn.Linear(config.proprio_dim, dim), nn.GELU(), nn.Linear(dim, dim))
            self.noisy_action_projector = nn.Sequential(nn.Linear(1, dim), nn.GELU(), nn.Linear(dim, dim))
            self.time_encoder = nn.Linear(1, dim).requires_grad_(False)

    def noise(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, time = torch.randn_like(actions), torch.rand(len(actions), 1, 1, dtype=actions.dtype)
        return noise, (1 - time) * actions + time * noise, self.time_encoder(time)

    def predict(self, states: Tensor, head: Head) -> Tensor:
        return self.action_head(states.reshape(len(states), self.chunk, -1))  # type: ignore[no-any-return]


def prismatic_loss(
    policy: Any,
    batch: Mapping[str, Tensor],
    *,
    heads: OFTHeads | None = None,
    head: Head = "discrete",
    film: bool = False,
    proprio: bool = True,
) -> Tensor:
    """The loss that upstream's script runs backward on, before its division by ``grad_accumulation_steps``.

    Without ``heads`` it is OpenVLA's loop; with them OFT's, which calls the policy in one and the same way for all
    three heads, but for the noise.
    """
    call: dict[str, Any] = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels")}
    if heads is None:
        return policy(**call).loss  # type: ignore[no-any-return]
    actions, noise = batch["actions"], None
    if head == "diffusion":
        noise, noisy, time = heads.noise(actions)
        call |= {"noisy_actions": noisy, "diffusion_timestep_embeddings": time}
        call |= {"noisy_action_projector": heads.noisy_action_projector}
    if proprio:
        call |= {"proprio": batch["proprio"], "proprio_projector": heads.proprio_projector}
    output = policy(**call, output_hidden_states=True, use_film=film)
    if head == "discrete":
        return output.loss  # type: ignore[no-any-return]
    targets = batch["labels"][:, 1:]
    inserted = output.hidden_states[-1].shape[1] - batch["input_ids"].shape[1]
    # Of the labels that count, all but the stop token are actions.
    states = output.hidden_states[-1][:, inserted:-1][targets > STOP]
    predicted = heads.predict(states.reshape(len(actions), actions[0].numel(), -1), head)
    # In float32: on a CPU, torch 2.2 has no mean squared error of bfloat16.
    if noise is None:
        return nn.functional.l1_loss(predicted.float(), actions.float())
    return nn.functional.mse_loss(predicted.float(), noise.float())
