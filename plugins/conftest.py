"""Every test of a plugin starts with the same random numbers, whichever ran before it in its process."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """What several tests share is made when the first of them asks for it, before the seed of that test or after."""
    if fixturedef.scope != "function":
        _seed()
    return (yield)
