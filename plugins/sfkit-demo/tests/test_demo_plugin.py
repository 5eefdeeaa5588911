"""What sfkit-demo registers, and what comes along with it."""

from __future__ import annotations

import subprocess
import sys

import sfkit_demo

from sfkit.registry.registry import Registry


def test_import_is_light() -> None:
    code = "import sys, sfkit_demo; print({'torch', 'lerobot', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_registers_the_command() -> None:
    registry = Registry()
    registry.add_plugin(sfkit_demo, "sfkit-demo")
    assert [(entry.kind, entry.name) for entry in registry.entries] == [("command", "demo")]


def test_recording_and_study_come_along() -> None:
    assert (sfkit_demo.RECORDING / "meta" / "info.json").is_file()
    assert sfkit_demo.STUDY.is_file()
