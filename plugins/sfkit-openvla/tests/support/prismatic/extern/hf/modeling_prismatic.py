"""Stand-ins of OpenVLA and OpenVLA-OFT: small, of random weights, in torch alone, with their call structure.

What is special to them, with the upstream file of each (``openvla/openvla`` and ``moojink/openvla-oft``; unless said
otherwise ``prismatic/extern/hf/modeling_prismatic.py``):

* The sequence is BOS, the visual tokens of all views, then (OFT) one proprio token if both ``proprio`` and
  ``proprio_projector`` are given, then (OFT) one diffusion-time token, then the rest of the text, actions last.
* ``projector_features`` of the output holds proprio and time tokens too, so its length is no count of visual tokens.
* Without ``pixel_values`` both run the language model on the text alone.
* OpenVLA returns its loss. OFT returns one as well, but with an L1 or a diffusion head its loop never reads it
  (``vla-scripts/finetune.py``): the loss is computed from ``hidden_states[-1]`` by modules outside the policy.
* OFT blanks the embeddings of action tokens, or puts noisy actions in their place; it finds them from ``labels``
  (``prismatic/training/train_utils.py``), which it therefore cannot do without.
* OFT's modules for proprio and noisy actions are *arguments* of forward, and not part of the policy.

Both have one class name upstream, each in its own repository. Here OFT's has it; ``tiny_prismatic`` makes either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prismatic.extern.hf.configuration_prismatic import OpenVLAConfig
from prismatic.extern.hf.llama import IGNORE, LlamaForCausalLM, Output
from prismatic.extern.hf.vision import VisionBackbone


class _Projector(nn.Module):
    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(vision_dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Linear(dim, dim)

    def forward(self, patches: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.fc1(patches))
        return self.fc3(nn.functional.gelu(self.fc2(hidden)))  # type: ignore[no-any-return]


class _Prismatic(nn.Module):
    """What both have in common."""

    counts_images: bool

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.llm_dim, self.pad_token_id = config.hidden_size, config.pad_token_id
        self.vision_backbone: Any = VisionBackbone(
            config.image_size, fused=config.fused, counts_images=self.counts_images
        )
        self.projector = _Projector(self.vision_backbone.embed_dim, config.hidden_size)
        self.language_model = LlamaForCausalLM(
            config.hidden_size, config.num_hidden_layers, config.vocabulary, both_ways=config.both_ways
        )

    def get_input_embeddings(self) -> nn.Module:
        """Embedding table."""
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Output layer; PEFT asks for it."""
        return self.language_model.lm_head

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Checkpoint the blocks of the language model."""
        self.language_model.model.checkpointing = gradient_checkpointing_kwargs or {"use_reentrant": True}

    def _speak(
        self,
        embeddings: Tensor,
        inserted: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        requested: tuple[bool | None, bool | None],
    ) -> Any:
        """Put tokens after BOS, run the language model, and pack what it gives: hidden states, and as a mapping?"""
        output_hidden_states, return_dict = requested
        if inserted is not None:
            count = inserted.shape[1]
            embeddings = torch.cat([embeddings[:, :1], inserted, embeddings[:, 1:]], 1)
            attention_mask, labels = (
                None if old is None else torch.cat([old[:, :1], old.new_full((len(old), count), new), old[:, 1:]], 1)
                for old, new in ((attention_mask, True), (labels, IGNORE))
            )
        found = self.language_model(embeddings, attention_mask, labels, bool(output_hidden_states))
        wants_dict = self.config.use_return_dict if return_dict is None else return_dict
        return Output(**found, projector_features=inserted) if wants_dict else found.to_tuple()


class OpenVLA(_Prismatic):
    """OpenVLA. The signature of ``forward`` is upstream's."""

    counts_images = False

    def forward(  # upstream's signature
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_projector_features: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        embeddings = self.get_input_embeddings()(input_ids)
        inserted = None if pixel_values is None else self.projector(self.vision_backbone(pixel_values))
        return self._speak(embeddings, inserted, attention_mask, labels, (output_hidden_states, return_dict))


class OFT(_Prismatic):
    """OpenVLA-OFT. The signature of ``forward`` is upstream's."""

    counts_images = True

    def forward(  # upstream's signature
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_projector_features: bool | None = None,
        return_dict: bool | None = None,
        proprio: Tensor | None = None,
        proprio_projector: nn.Module | None = None,
        noisy_actions: Tensor | None = None,
        noisy_action_projector: nn.Module | None = None,
        diffusion_timestep_embeddings: Tensor | None = None,
        use_film: bool = False,
    ) -> Any:
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return self._speak(embeddings, None, attention_mask, labels, (output_hidden_states, return_dict))
        assert labels is not None, "upstream fails here too, with another message"
        actions = labels > self.config.action_begin
        language = embeddings[~actions].reshape(len(embeddings), -1, self.llm_dim)
        patches = self.vision_backbone(pixel_values, language) if use_film else self.vision_backbone(pixel_values)
        inserted = [self.projector(patches)]
        if proprio is not None and proprio_projector is not None:
            inserted.append(proprio_projector(proprio.reshape(len(embeddings), -1))[:, None])
        if diffusion_timestep_embeddings is not None:
            inserted.append(diffusion_timestep_embeddings)
        replaced = torch.zeros_like(embeddings)
        if noisy_actions is not None and noisy_action_projector is not None:
            features = noisy_action_projector(noisy_actions.flatten(1)[..., None])
            replaced = replaced.masked_scatter(actions[..., None], features.to(replaced.dtype))
        embeddings = torch.where(actions[..., None], replaced, embeddings)
        extended = torch.cat(inserted, 1)
        return self._speak(embeddings, extended, attention_mask, labels, (output_hidden_states, return_dict))


class OpenVLAForActionPrediction(OFT):
    """OpenVLA-OFT under upstream's name."""
