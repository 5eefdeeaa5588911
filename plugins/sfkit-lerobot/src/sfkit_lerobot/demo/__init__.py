"""``sfkit demo``: a small SmolVLA trained twice from one seed, plain and aligned, and an honest comparison."""
