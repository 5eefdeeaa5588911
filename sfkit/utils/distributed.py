"""Whether there are other processes that train the same policy."""

from __future__ import annotations

import torch.distributed as dist


def is_distributed() -> bool:
    """True once ``torch.distributed`` runs: other ranks may then wait for what this one does."""
    return dist.is_available() and dist.is_initialized()
