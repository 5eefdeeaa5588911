"""What sfkit costs, measured side by side with the same thing without it: ``python -m benchmarks --help``."""
