"""Measurements of speed and size: `python -m benchmarks.<name>`. Never part of the tests."""
