"""Benchmarks: what the figures of the README and of docs/ come from. `python -m benchmarks.quality.concept --help`."""
