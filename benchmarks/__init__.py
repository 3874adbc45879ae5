"""Checks and measurements that take longer than tests; each file is a script: `python -m benchmarks.NAME`."""
