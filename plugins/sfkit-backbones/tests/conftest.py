"""Fixtures of the tests of teachers."""

from __future__ import annotations

import pytest
from sfkit_backbones.testing import SmallTeacher


@pytest.fixture
def small_teacher() -> type[SmallTeacher]:
    return SmallTeacher
