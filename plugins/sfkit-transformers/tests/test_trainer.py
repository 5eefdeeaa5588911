"""The real Trainer, and a real tiny Llama that reads an image."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sfkit_transformers import SpatialForcingCallback
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sfkit import SpatialForcing
from sfkit.errors import LossError, WrapError
from sfkit.policies.base import ForwardCall, PolicyAdapter, TapPoint
from sfkit.testing.tiny import PatchTeacher
from sfkit.views.types import FeatureMap, Views

PATCH, SIDE, WORDS = 8, 32, 6
GRID = (SIDE // PATCH, SIDE // PATCH)


class PolicyWithImages(LlamaForCausalLM):
    """Visual tokens before the words."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, PATCH, PATCH)

    def forward(self, images: Any = None, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        visual = self.patches(images).flatten(2).transpose(1, 2)
        embeds = torch.cat([visual, self.get_input_embeddings()(input_ids)], 1)
        ignored = labels.new_full(visual.shape[:2], -100)
        return super().forward(inputs_embeds=embeds, labels=torch.cat([ignored, labels], 1), **kwargs)


class ImageAdapter(PolicyAdapter):
    name = "wrapped_policy"
    policy: PolicyWithImages

    @property
    def num_layers(self) -> int:
        return len(self.policy.model.layers)

    def dim(self, layer: int) -> int:
        return int(self.policy.config.hidden_size)

    def tap(self, layer: int) -> TapPoint:
        return TapPoint(self.policy.model.layers[layer].input_layernorm, f"model.layers.{layer}.input_layernorm")

    def views(self, call: ForwardCall) -> Views:
        images = call.arguments["images"]
        b, _, h, w = images.shape
        return Views(images[:, None], torch.ones(b, 1, h, w, dtype=torch.bool), ("front",))

    def visual_tokens(self, hidden: torch.Tensor, views: Views) -> FeatureMap:
        tokens = hidden[:, : GRID[0] * GRID[1]].unflatten(1, (1, *GRID))
        return FeatureMap(tokens, torch.ones(tokens.shape[:-1], dtype=torch.bool))


class Frames(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Samples with different numbers of words that count, and a column that the model does not take."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(index)
        words = torch.randint(3, 40, (WORDS,), generator=g)
        labels = words.clone()
        labels[: 1 + index % 3] = -100
        return {"images": torch.rand(3, SIDE, SIDE, generator=g), "input_ids": words, "labels": labels, "index": index}


def wrapped_policy(**options: Any) -> PolicyWithImages:
    """Wrapped with these arguments, and always with the same weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    policy = PolicyWithImages(LlamaConfig(vocab_size=48, pad_token_id=0, **sizes))
    return SpatialForcing.wrap(policy, PatchTeacher(), student_layer=2, adapter=ImageAdapter(policy), **options)


@pytest.fixture
def build() -> Callable[..., PolicyWithImages]:
    return wrapped_policy


def train(
    policy: PolicyWithImages, folder: Path, batch: int, accumulation: int, *, callback: bool = True, steps: int = 2,
    **further: Any,
) -> Trainer:  # fmt: skip
    settings: dict[str, Any] = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": steps,
        "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "logging_steps": 1, "use_cpu": True,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant",
        **further,
    }  # fmt: skip
    trainer = Trainer(
        model=policy,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=Frames(),
        callbacks=[SpatialForcingCallback(policy)] if callback else [],
    )
    # The order is the point of the comparison, not what it is.
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(trainer.train_dataset)  # type: ignore[method-assign]
    trainer.train()
    return trainer


def test_fault_47_and_48_accumulated_batches_train_as_one(
    build: Callable[..., PolicyWithImages], tmp_path: Path
) -> None:
    """The columns arrive although forward was overridden, and the alignment counts once for each optimizer step."""
    whole, parts = build(), build()
    train(whole, tmp_path, 4, 1)
    trainer = train(parts, tmp_path, 1, 4)
    torch.manual_seed(0)
    for (name, one), two in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)
    assert parts.spatial_forcing.steps == 8
    assert parts.spatial_forcing.step == 2
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["sf_loss"] > 0
    assert first["sf_effective_weight"] == 0.5


def test_the_alignment_moves_what_is_trained(build: Callable[..., PolicyWithImages], tmp_path: Path) -> None:
    aligned, plain = build(), build(weight=0.0)
    train(aligned, tmp_path, 4, 1)
    train(plain, tmp_path, 4, 1)
    assert (aligned.patches.weight - plain.patches.weight).abs().max() > 1e-4


def test_undeclared_accumulation_is_an_error(build: Callable[..., PolicyWithImages], tmp_path: Path) -> None:
    with pytest.raises(LossError, match="SpatialForcingCallback"):
        train(build(), tmp_path, 1, 4, callback=False)


@pytest.mark.parametrize(("averages", "processes"), [(True, 2), (False, 1)])
def test_the_callback_sets_whether_the_loss_is_multiplied(
    averages: bool, processes: int, build: Callable[..., PolicyWithImages]
) -> None:
    """As Trainer.compute_loss does under average_tokens_across_devices, to make up for DDP's mean."""
    policy = build()
    args = SimpleNamespace(gradient_accumulation_steps=4, average_tokens_across_devices=averages, world_size=2)
    SpatialForcingCallback(policy).on_train_begin(args, None, None)
    assert policy.spatial_forcing.scale.processes == processes
    assert policy.spatial_forcing.grad_accumulation == 4


def test_a_policy_that_is_not_wrapped_is_refused() -> None:
    with pytest.raises(WrapError, match="not wrapped"):
        SpatialForcingCallback(nn.Linear(2, 2))


def step_by_hand(policy: PolicyWithImages, groups: Sequence[Sequence[int]]) -> None:
    """One step by the mean, over groups of samples, of the loss over all their words with the alignment loss added."""
    handle, seen = policy.spatial_forcing, []
    norm = policy.model.layers[2].input_layernorm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for group in groups:
        samples = [Frames()[index] for index in group]
        data = {key: torch.stack([sample[key] for sample in samples]) for key in ("images", "input_ids", "labels")}
        with SpatialForcing.disabled(policy):
            output = policy.train()(**data)
        views = handle.adapter.views(ForwardCall(data, output))
        tokens = handle.adapter.visual_tokens(seen.pop(), views)
        (target,) = handle.runners[0].features(views, [1], tokens.grid)
        projected = handle.pairs[0].projector(tokens.values, tokens.mask)
        alignment = 0.5 * (1 - nn.functional.cosine_similarity(projected, target.values, dim=-1)).mean()
        ((output.loss + alignment) / len(groups)).backward()
    hook.remove()
    torch.optim.SGD(policy.parameters(), 0.5).step()


def test_fault_48_the_trainer_trains_the_explicit_sum(build: Callable[..., PolicyWithImages], tmp_path: Path) -> None:
    """One step of four batches moves every parameter as the loss over all words, with the alignment added by hand."""
    policy, other = build(), build()
    train(policy, tmp_path, 1, 4, steps=1)
    step_by_hand(other, [range(4)])
    for (name, one), two in zip(policy.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes has left of one step of two batches each."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(__file__).parent / "workers" / "trainer_ranks.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("average", [True, False])
def test_fault_48_two_processes_train_the_explicit_sum(
    average: bool, ranks: Path, build: Callable[..., PolicyWithImages]
) -> None:
    """With ``average_tokens_across_devices`` each word counts alike, else each process: the alignment counts once."""
    start, other = build(), build()
    step_by_hand(other, [range(4)] if average else [(0, 2), (1, 3)])
    for rank in range(2):
        found = load_file(ranks / f"{average}.{rank}.safetensors")
        for (name, before), wanted in zip(start.named_parameters(), other.parameters(), strict=True):
            moved, by_hand = found[name] - before.detach(), wanted.detach() - before.detach()
            assert (moved - by_hand).norm() <= 1e-4 * by_hand.norm() + 1e-6, name


@pytest.mark.slow
def test_fault_48_an_undeclared_number_of_processes_is_an_error(ranks: Path) -> None:
    for rank in range(2):
        assert "average_tokens_across_devices" in (ranks / f"{rank}.txt").read_text()
