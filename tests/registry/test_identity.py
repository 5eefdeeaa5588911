"""A component is saved under the name that it is registered with, and keeps its license note (fault 74)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sfkit import SpatialForcing
from sfkit.errors import PluginError
from sfkit.registry.registry import Entry, default_registry
from sfkit.testing.tiny import PatchTeacher, TinyAdapter, TinyPolicy, tiny_batch

Make = Callable[..., TinyPolicy]


class Limited(PatchTeacher):
    name = "limited"
    license = "CC-BY-NC-4.0"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [Entry("teacher", name, Limited, "acme", license=Limited.license) for name in ("limited", "free")]
    own.append(Entry("policy", "tiny", TinyAdapter, "acme"))
    monkeypatch.setattr(default_registry(), "entries", [*default_registry().entries, *own])


def test_fault_74_a_teacher_is_resumed_with_its_license_note(
    wrapped: Make, tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = wrapped("limited")
    policy(tiny_batch())
    policy.spatial_forcing.save(tmp_path)
    caplog.clear()
    resumed = SpatialForcing.from_pretrained(tiny(), tmp_path).spatial_forcing
    assert "the weights of teacher 'limited' are licensed CC-BY-NC-4.0, for non-commercial use only" in caplog.text
    assert resumed.teachers[0].spec == policy.spatial_forcing.teachers[0].spec


def test_fault_74_another_name_is_refused_at_the_wrap(wrapped: Make) -> None:
    with pytest.raises(PluginError, match="acme registers teacher 'free', whose class says that its name is 'limited'"):
        wrapped("free")
