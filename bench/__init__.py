"""Benchmarks: ``pytest bench`` measures, ``python -m bench.report`` writes docs/performance.md (see
README.md here).
"""
