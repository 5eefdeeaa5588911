"""What importing costs, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_sfkit_is_light() -> None:
    assert not modules_after("import sfkit; dir(sfkit)") & {"torch", "pydantic", "pluggy", "numpy", "transformers"}


def test_spatial_forcing_imports_no_host_framework_or_plugin() -> None:
    loaded = modules_after("from sfkit import SpatialForcing")
    assert "torch" in loaded
    assert not loaded & {"transformers", "lerobot", "peft", "matplotlib"}
    assert not loaded & {"sfkit_backbones", "sfkit_lerobot", "sfkit_vggt"}


def test_the_command_line_starts_light() -> None:
    lines = ("sys.argv = ['sfkit', '--help']", "from sfkit.cli import main", "try: main()", "except SystemExit: pass")
    code = "\n".join(lines)
    assert not modules_after(code) & {"torch", "pydantic", "transformers", "lerobot"}


def test_every_export_resolves_and_typos_do_not() -> None:
    import sfkit

    for name in sfkit.__all__:
        assert getattr(sfkit, name) is not None
    assert set(sfkit.__all__) <= set(dir(sfkit))
    with pytest.raises(AttributeError, match="Spatial"):
        _ = sfkit.SpatialForcings
