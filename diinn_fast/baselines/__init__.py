"""Methods that DIINN is measured against, for evaluation and benchmarks; LIIF and Meta-SR can be
trained like it.
"""

from diinn_fast.baselines.bicubic import bicubic
from diinn_fast.baselines.dncnn import DnCNN
from diinn_fast.baselines.liif import LIIF
from diinn_fast.baselines.metasr import MetaSR

__all__ = ["LIIF", "DnCNN", "MetaSR", "bicubic"]
