"""Shared by the benchmarks: records, arms of a concept, metrics of the built-in judge, single-threaded processes."""
