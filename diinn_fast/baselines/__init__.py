"""Methods that DIINN is measured against, for evaluation and benchmarks."""

from diinn_fast.baselines.liif import LIIF

__all__ = ["LIIF"]
