"""Benchmarks: Holdfast beside tuned peers, on the same data, in one run. `python -m benchmarks.run`."""
