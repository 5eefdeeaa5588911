"""pytest plugin: puts a seed before each test that asks for one. Installed with sfkit, import-light on purpose."""

from __future__ import annotations

import pytest


@pytest.fixture
def seeded() -> int:
    """Seed torch's global generator with 0, and return the seed."""
    import torch

    torch.manual_seed(0)
    return 0
