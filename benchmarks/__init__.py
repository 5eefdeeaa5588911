"""What sfkit costs, measured side by side with the same thing without it: ``python -m benchmarks --help``."""

import sys
from pathlib import Path

# Stand-ins of openpi and prismatic are a part of the tests of their plugins.
sys.path.extend(map(str, (Path(__file__).parents[1] / "plugins").glob("*/tests/support")))
