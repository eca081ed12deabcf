"""Benchmarks: samples, never assertions. `python -m bench --help`; docs/benchmarks.md explains each."""
