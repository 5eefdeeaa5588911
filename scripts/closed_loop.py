"""Run ``lerobot-eval``, and say what it found: the success rate with its interval, and the time of a step.

    python scripts/closed_loop.py --policy.path=CHECKPOINT --env.type=libero --env.task=libero_spatial \
      --env.task_ids='[0]' --eval.n_episodes=10 --eval.batch_size=1 --policy.device=cpu

All flags but --episode-seconds are those of ``lerobot-eval``, and any of its environments will do.
"""

from __future__ import annotations

import argparse
import sys

from sfkit_libero.closed_loop import evaluate

from sfkit.errors import SfkitError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--episode-seconds", type=float, default=3600, help="how long an episode may take (%(default)s)"
    )
    options, flags = parser.parse_known_args()
    try:
        print(evaluate(flags, options.episode_seconds).report())
    except SfkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
