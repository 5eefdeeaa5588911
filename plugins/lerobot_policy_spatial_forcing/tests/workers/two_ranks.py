"""One rank of lerobot-train under torchrun; writes what it saw to ``$RANK_FILE.<rank>``."""

from __future__ import annotations

import os
from typing import Any

import torch
from lerobot.scripts import lerobot_train

from sfkit import SpatialForcing

seen: dict[str, Any] = {"gradients": [], "local": [], "own": [], "logged": []}
#: What holds gloo's process group: its destructor hangs now and then when the other rank has left.
alive: list[Any] = []
make, update, reset = (
    lerobot_train.make_optimizer_and_scheduler,
    lerobot_train.update_policy,
    lerobot_train.MetricsTracker.reset_averages,
)


def made(cfg: Any, policy: Any) -> Any:
    seen["policy"] = policy
    optimizer, scheduler = make(cfg, policy)
    parameters = list(SpatialForcing.of(policy).pairs.parameters())
    local: dict[int, torch.Tensor] = {}
    for index, parameter in enumerate(parameters):  # what it has before DDP averages it
        parameter.register_hook(lambda gradient, index=index: local.update({index: gradient.flatten().clone()}))

    def before_step(*_: Any) -> None:
        seen["gradients"].append(torch.cat([p.grad.flatten() for p in parameters]).clone())
        seen["local"].append(torch.cat([local.pop(index) for index in range(len(parameters))]))

    optimizer.register_step_pre_hook(before_step)
    return optimizer, scheduler


def updated(*args: Any, **kwargs: Any) -> Any:
    alive[:] = [args, kwargs]
    tracker, figures = update(*args, **kwargs)
    seen["own"].append(dict(figures))
    return tracker, figures


def noted(tracker: Any) -> None:
    seen["logged"].append(tracker.to_dict())
    reset(tracker)


lerobot_train.make_optimizer_and_scheduler = made
lerobot_train.update_policy = updated
lerobot_train.MetricsTracker.reset_averages = noted
lerobot_train.main()
policy = seen.pop("policy")
seen["parameters"] = {name: value.detach().clone() for name, value in policy.named_parameters()}
seen["steps"] = SpatialForcing.of(policy).steps
torch.save(seen, f"{os.environ['RANK_FILE']}.{os.environ['RANK']}")
os._exit(0)  # and past the destructor
