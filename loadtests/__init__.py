"""Load, proof and benchmarks: run against a real pipeline on this machine, never part of the test suite."""
