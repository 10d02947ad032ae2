"""Throughput and memory, measured: no tests, no results."""
