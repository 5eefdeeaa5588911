"""Whether there are other processes that train the same policy."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def is_distributed() -> bool:
    """True once ``torch.distributed`` runs: other ranks may then wait for what this one does."""
    return dist.is_available() and dist.is_initialized()


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's ``fully_shard`` was applied; recognized by name, as older torch has no such class."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)
