"""Measurements of tools/benchmark.py, one module for each command."""
