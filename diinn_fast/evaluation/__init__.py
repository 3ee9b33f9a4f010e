"""Measuring models on folders of HR images: per-image rows, tables, plots and crop sheets; and the
runtime table.
"""

from diinn_fast.evaluation.candidates import Candidate, load_candidate
from diinn_fast.evaluation.results import Results, Row
from diinn_fast.evaluation.run import evaluate

__all__ = ["Candidate", "Results", "Row", "evaluate", "load_candidate"]
