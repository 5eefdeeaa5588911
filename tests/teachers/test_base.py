"""Estimates of memory, and what is said when it runs out."""

from __future__ import annotations

import pytest
import torch

from sfkit.errors import TeacherMemoryError
from sfkit.teachers.base import Memory, explain_out_of_memory, is_out_of_memory


def test_an_estimate_is_shown_in_readable_units() -> None:
    assert str(Memory(5 * 2**20, 3 * 2**30)) == "5.0 MiB of weights and about 3.00 GiB while it runs"


def test_running_out_says_who_ran_out_and_what_reduces_it() -> None:
    with (
        pytest.raises(TeacherMemoryError, match=r"Out of memory while running teacher 'x'(.|\n)*micro_batch"),
        explain_out_of_memory("running teacher 'x'", "Set micro_batch=1."),
    ):
        torch.empty(2**60)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), explain_out_of_memory("running", "advice"):
        raise RuntimeError("a bug")


def test_both_allocators_are_known() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(ValueError("memory of an elephant"))
