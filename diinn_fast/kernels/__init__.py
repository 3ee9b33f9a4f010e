"""In a checkout, ``diinn_fast.kernels`` is the folder ``kernels`` beside the package; a wheel holds
that one here.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
