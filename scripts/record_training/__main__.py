"""Compares how two commits train, to the last bit: losses, gradients, parameters and their order.

    python scripts/record_training --against main     this checkout against a commit
    python scripts/record_training --write FILE       record this checkout
    python scripts/record_training --compare OLD NEW  compare two records

Each checkout records its own cases with its own packages, so that names may change between the commits. Records are
compared by the names of cases and by position. They hold for one machine and one set of installed libraries.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; 1 where something differs or fails."""
    parser = argparse.ArgumentParser(prog="record_training", description=(__doc__ or "").partition("\n")[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--against", metavar="COMMIT", help="record this commit and this checkout, and compare them")
    task.add_argument("--write", type=Path, metavar="FILE", help="record a checkout")
    task.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two records")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="what --write records (default: this one)")
    parser.add_argument("--cases", nargs="*", default=["*"], metavar="PATTERN", help="such as 'tiny/*' (default: all)")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each case (default: 30)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread (default: 2)")
    given = parser.parse_args(arguments)
    if given.compare:
        return _compare(*given.compare)
    options = ["--cases", *given.cases, "--steps", str(given.steps), "--jobs", str(given.jobs)]
    if given.against:
        return _against(given.against, options)

    # Before torch is imported, and for all processes that are started here.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    from checkout import use_checkout

    with use_checkout(given.checkout.resolve()):
        from recording import record_cases

        return record_cases(given.checkout.resolve(), given.write, given.cases, given.steps, given.jobs)


def _compare(old: Path, new: Path) -> int:
    from comparing import compare, load

    report = compare(load(old), load(new))
    print(report.text)
    return 0 if report.same else 1


def _against(commit: str, options: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="record-training-") as work:
        old, new, tree = Path(work, "old.json"), Path(work, "new.json"), Path(work, "checkout")
        _export(commit, tree)
        # A commit from before the recorder is recorded with the cases of this checkout.
        script = tree / HERE.relative_to(ROOT)
        script = script if script.is_dir() else HERE
        for name, at, folder, file in ((commit, tree, script, old), ("this checkout", ROOT, HERE, new)):
            print(f"recording {name}", file=sys.stderr)
            command = [sys.executable, str(folder), "--write", str(file), "--checkout", str(at), *options]
            # A case that fails is in the record, and the comparison names it.
            subprocess.run(command, check=False)
            if not file.is_file():
                raise SystemExit(f"no record of {name} was written")
        return _compare(old, new)


def _export(commit: str, folder: Path) -> None:
    """Write the files of a commit; unlike a worktree, a killed process leaves no trace of it in the repository."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


if __name__ == "__main__":
    sys.exit(main())
