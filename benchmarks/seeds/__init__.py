"""The demonstration's comparison over several seeds, with a control: ``python -m benchmarks.seeds --help``."""
