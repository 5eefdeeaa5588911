"""One rank under accelerate's FSDP2, where the trainer calls ``policy(batch)``: ``DEVICE OUT CHECKPOINT DATA``.

LeRobot's trainer does so from 0.6.2 on, and saves as it is done here: all ranks ask the policy, one writes.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy
from lerobot_policy_spatial_forcing import CONFIGS, SpatialForcingOptions, compat
from sfkit_lerobot.testing import tiny_lerobot_batch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

STEPS, RATE = 3, 1.0


def accelerator(device: str) -> Any:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["SmolVLMEncoderLayer"],  # the decoder's blocks are never called
    )
    if device == "cpu":  # for which accelerate offers no FSDP2, although nothing of it asks for more
        Accelerator(cpu=True).state.fsdp_plugin = plugin
        PartialState().distributed_type = DistributedType.FSDP
    shards = ParallelismConfig(dp_shard_size=int(os.environ["WORLD_SIZE"]))
    return Accelerator(cpu=device == "cpu", fsdp_plugin=plugin, parallelism_config=shards)


def build(device: str, checkpoint: str, data: str) -> Any:
    block = SpatialForcingOptions(teacher="geometry", student_layer=2)
    config = CONFIGS["sf_smolvla"](sf=block, device=device, push_to_hub=False, pretrained_path=checkpoint)
    dataset = LeRobotDataset("local/x", root=data)  # the unit of depth is a setting of the open dataset
    return make_policy(config, ds_meta=dataset.meta).train()


def batch_of(policy: Any, step: int, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A batch of two, depth in millimeters, and the noise that the policy would draw for it."""
    batch = tiny_lerobot_batch(policy, seed=10 * step + rank, image_size=(96, 96), geometry=True)
    batch = {key: value * 1000 if key.endswith("_depth") else value for key, value in batch.items()}
    generator = torch.Generator().manual_seed(10 * step + rank)
    noise = torch.randn(2, policy.config.chunk_size, policy.config.max_action_dim, generator=generator)
    return batch, {"noise": noise, "time": torch.rand(2, generator=generator)}


def on(device: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in tensors.items()}


def main(device: str, out: str, checkpoint: str, data: str) -> None:
    compat.trainer_calls_forward = lambda: False  # that of LeRobot 0.6.1 does; the loop below does not
    loop = accelerator(device)
    rank = loop.process_index
    policy = build(device, checkpoint, data)
    optimizer = torch.optim.SGD(policy.get_optim_params(), RATE)
    policy, optimizer = loop.prepare(policy, optimizer)
    losses = []
    for step in range(STEPS):
        batch, noise = (on(loop.device, part) for part in batch_of(policy, step, rank))
        with loop.accumulate(policy), loop.autocast():
            loss, logs = policy(batch, **noise)
        loop.backward(loss)
        norm = loop.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append({**logs, "loss": float(loss), "norm": float(norm.full_tensor())})
    gathered = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # LeRobot 0.6.1 wants what was gathered, and writes wherever it is asked.
    policy.save_pretrained(f"{out}.{rank}", state_dict={key: value.clone() for key, value in gathered.items()})
    parameters = {name: parameter.full_tensor().cpu() for name, parameter in policy.named_parameters()}
    held = sum(parameter.to_local().numel() for parameter in policy.parameters())
    torch.save({"losses": losses, "parameters": parameters, "held": held}, f"{out}.{rank}.pt")
    os._exit(0)  # past gloo's end, which now and then hangs or aborts when the other rank has left


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
