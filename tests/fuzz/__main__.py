"""Give at least 100,000 hostile inputs to all parsers: ``make fuzz``. Only values and errors of sfkit may come out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from installed import installed_parsers
from running import fuzz

from sfkit.cli.console import plain_console


def main() -> int:
    """Run; 1 where an input ended in another error."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("only", nargs="*", help="parsers with one of these texts in their name; default: all")
    words.add_argument("--inputs", type=int, default=110_000, help="for all parsers together")
    words.add_argument("--seed", type=int, default=None, help="other inputs; default: always the same")
    given = words.parse_args()
    parsers = [one for one in installed_parsers() if not given.only or any(text in one.name for text in given.only)]
    logging.getLogger("sfkit").addHandler(logging.NullHandler())  # the line of each wrap
    shares = sum(one.share for one in parsers)
    console, total, faults = plain_console(highlight=False), 0, 0
    for parser in parsers:
        begin = time.monotonic()
        tally = fuzz(parser, round(given.inputs * parser.share / shares) + 1, seed=given.seed)
        total, faults = total + tally.inputs, faults + tally.fault_count
        refused = ", ".join(f"{count} {name}" for name, count in tally.refused.most_common())
        console.print(
            f"{tally.inputs:7} {parser.name}: {tally.accepted} read; {refused or 'none refused'}"
            f" ({time.monotonic() - begin:.0f} s)",
            soft_wrap=True,
        )
        for kind, (value, message) in tally.faults.items():
            console.print(f"        FAULT {kind}: {message}\n              {value[:400]}", style="red", soft_wrap=True)
    console.print(f"{total} inputs to {len(parsers)} parsers: {faults} ended in errors that are not sfkit's.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
