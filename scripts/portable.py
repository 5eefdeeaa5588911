"""Run the tests that compare numbers under other kernels, and with one thread and with two.

The kernels of torch, oneDNN and MKL are chosen by the processor; these switches make them what they are on another.
Arguments go to pytest. At the end of each run it prints how near a comparison came to its bound.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

KERNELS = {
    "as on this processor": {},
    "without AVX": {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "MKL's compatible ones": {"MKL_CBWR": "COMPATIBLE"},
}
THREADS = (1, 2)
_NOTES = "SFKIT_PORTABLE_NOTES"
#: What assert_close takes for torch's dtypes where a test names no bound.
_DEFAULTS = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-7), torch.bfloat16: (1.6e-2, 1e-5)}


def main(arguments: list[str]) -> int:
    """Run all combinations; 1 if one fails."""
    failed = []
    for (name, switches), threads in itertools.product(KERNELS.items(), THREADS):
        if (name, threads) == (next(iter(KERNELS)), 1):
            continue  # that is `make test`
        notes = Path(tempfile.mkdtemp()) / "notes.jsonl"
        environment = {**os.environ, **switches, "OMP_NUM_THREADS": str(threads), _NOTES: str(notes)}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "portable", "-p", "portable", "-p", "no:cacheprovider"]
        start = time.monotonic()
        print(f"== {name}, {threads} thread(s): {switches}", flush=True)
        done = subprocess.run([*command, "--hypothesis-seed=0", *arguments], env=environment, check=False)
        if done.returncode:
            failed.append(f"{name}, {threads} thread(s)")
        print(f"== {time.monotonic() - start:.0f} s; {_nearest(notes)}", flush=True)
        shutil.rmtree(notes.parent)
    print(f"FAILED: {'; '.join(failed)}" if failed else "PASSED under all kernels")
    return int(bool(failed))


def _nearest(notes: Path) -> str:
    """The comparisons that came nearest to their bounds."""
    found: dict[str, float] = {}
    for line in notes.read_text().splitlines() if notes.exists() else []:
        test, ratio = json.loads(line)
        found[test] = max(found.get(test, 0.0), ratio)
    nearest = sorted(found.items(), key=lambda item: -item[1])[:5]
    return "nearest to its bound: " + ", ".join(f"{ratio:.2f} {test}" for test, ratio in nearest)


# ------------------------------------------------------------------------------------------- as a plugin of pytest


def _note(ratio: float) -> None:
    # Above 1 a test has failed, or asked whether two things differ.
    if ratio <= 1:
        with Path(os.environ[_NOTES]).open("a") as file:
            file.write(json.dumps([os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0], ratio]) + "\n")


def _note_tensors(found: Any, wanted: Any, rtol: float, atol: float) -> None:
    if isinstance(found, torch.Tensor) and found.is_floating_point() and found.numel():
        difference = (found.detach().double() - torch.as_tensor(wanted).detach().double()).abs()
        bound = atol + rtol * torch.as_tensor(wanted).detach().double().abs()
        _note(float((difference / bound.clamp_min(1e-300)).nan_to_num(0).max()))


def pytest_configure(config: pytest.Config) -> None:
    """Let each kind of comparison note how near it came."""
    from sfkit.testing import checks

    allclose, assert_close, relative = torch.allclose, torch.testing.assert_close, checks.relative_difference
    scalar: Any = next(kind for kind in type(pytest.approx(1.0)).__mro__ if kind.__name__ == "ApproxScalar")
    equals = scalar.__eq__

    def noted_allclose(found: Any, wanted: Any, rtol: float = 1e-5, atol: float = 1e-8, **options: Any) -> bool:
        _note_tensors(found, wanted, rtol, atol)
        return allclose(found, wanted, rtol, atol, **options)

    def noted_assert_close(found: Any, wanted: Any, **options: Any) -> None:
        assert_close(found, wanted, **options)
        rtol, atol = _DEFAULTS.get(getattr(found, "dtype", None), (0.0, 0.0))
        _note_tensors(found, wanted, options.get("rtol", rtol), options.get("atol", atol))

    def noted_relative(found: torch.Tensor, wanted: torch.Tensor, scale: float = 0.0) -> float:
        difference = relative(found, wanted, scale)
        _note(difference / (checks.ROUNDING[found.dtype] + checks.ROUNDING[wanted.dtype]))
        return difference

    def noted_equals(self: Any, other: Any) -> Any:
        if isinstance(other, float) and isinstance(self.expected, (int, float)) and self.tolerance:
            _note(abs(other - self.expected) / self.tolerance)
        return equals(self, other)

    torch.allclose, torch.testing.assert_close = noted_allclose, noted_assert_close
    checks.relative_difference, scalar.__eq__ = noted_relative, noted_equals


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
