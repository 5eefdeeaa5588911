"""For the core and plugins: random numbers, processes, recomputation, nested outputs, log lines and local files."""
