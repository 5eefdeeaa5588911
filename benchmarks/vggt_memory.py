"""How much memory VGGT's backbone takes, to load and to run: peaks of the resident set of processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfkit_vggt.config import FULL, TINY, VggtConfig

from benchmarks.report import Report, Row
from benchmarks.vggt import REDUCED_CONFIG, about

_WORKER = Path(__file__).parent / "vggt_peak.py"


@dataclass(frozen=True)
class VggtMemory:
    """Peaks of one size of the backbone.

    Attributes:
        name: Of the report.
        config: Sizes.
        judged: Whether the targets, which are set for the full size, apply.
    """

    name: str
    config: VggtConfig
    judged: bool

    def steps(self, *, quick: bool) -> int:
        return 5

    def run(self, *, quick: bool, advance: Callable[[], None]) -> Report:
        config = TINY if quick else self.config
        side = 56 if quick else 518
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"

            def measure(what: str, **more: Any) -> dict[str, Any]:
                task = {"what": what, "config": config.model_dump(), "side": side, "path": str(path), **more}
                done = subprocess.run(
                    [sys.executable, str(_WORKER), json.dumps(task)], check=True, capture_output=True, text=True
                )
                advance()
                found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                return found

            measure("write")
            loads = {dtype: measure("load", dtype=dtype) for dtype in ("float32", "bfloat16")}
            one, every = (
                measure("run", layers=[config.num_layers]),
                measure("run", layers=[*range(1, config.num_layers + 1)]),
            )
        rows = [
            self._row("features held, over those of every layer", one["held"] / every["held"], 1 / config.num_layers),
            self._row("peak of a forward beside the weights, over keeping every layer in float32",
                      one["peak"] / every["peak"], 1 / 3),
            *(
                self._row(f"loading in {dtype}: peak over the backbone's own size", found["peak"] / found["size"],
                          1.2 if dtype == "float32" else None)
                for dtype, found in loads.items()
            ),
            Row("peak of a forward beside the weights", _mebibytes(one["peak"]), data={"estimate": one["estimate"]}),
            Row("the same, as estimated before loading", _mebibytes(one["estimate"])),
            Row("peak where every layer is kept", _mebibytes(every["peak"])),
        ]  # fmt: skip
        return Report(
            name=self.name,
            title=f"VGGT's backbone{' at full size' if self.judged else ', reduced'}: memory",
            rows=rows,
            conditions={
                "sizes": about(config),
                "views": "2 of one sample",
                "side": f"{side} px",
                "weights": "random, in a file with heads beside the backbone",
                "measured": "peak of the resident set, less what was resident before",
                "file": f"{loads['float32']['file'] / 2**20:.0f} MiB, "
                f"backbone {loads['float32']['size'] / 2**20:.0f} MiB",
            },
        )

    def _row(self, what: str, ratio: float, limit: float | None) -> Row:
        if not self.judged or limit is None:
            return Row(what, f"{ratio:.4f}", data={"ratio": ratio})
        verdict = "met" if ratio <= limit * 1.0001 else "missed"
        return Row(what, f"{ratio:.4f}", f"at most {limit:.4g}", verdict, data={"ratio": ratio})


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


REDUCED = VggtMemory("vggt-memory", REDUCED_CONFIG, judged=False)
AT_FULL_SIZE = VggtMemory("vggt-memory-full", FULL, judged=True)
