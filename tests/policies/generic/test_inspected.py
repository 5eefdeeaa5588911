"""What ``inspect_policy`` finds on real classes is what the adapters beside are given by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sfkit_tools", reason="sfkit-tools is not installed")

from sfkit_tools import inspect_policy


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", ["paligemma", "llava", "smolvlm", "qwen"])
def test_a_vlm_is_found_out(make_vlm: Callable[..., Any], family: str, padding: str) -> None:
    case = make_vlm(family, padding)
    found = inspect_policy(case.policy, case.batch())
    assert found.adapter.options == case.adapter.options
    assert found.hits == 1.0
    assert [(tap.fired, tap.trained) for tap in found.taps] == [(1, True)] * 4
    assert sum(stack.sees for stack in found.stacks) == 1


def test_a_text_with_images_is_inspected(make_text: Callable[..., Any]) -> None:
    case = make_text("left")
    assert inspect_policy(case.policy, case.batch()).adapter.options == case.adapter.options
