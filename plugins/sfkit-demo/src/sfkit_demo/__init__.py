"""``sfkit demo``: a small policy trained twice from one seed, plain and aligned, and an honest comparison."""
