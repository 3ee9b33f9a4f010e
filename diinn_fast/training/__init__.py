"""Training on Lightning (the extra ``diinn_fast[train]``): ``diinn-fast train``, see
docs/training.md.

``module`` is what is trained, ``datamodule`` on what, ``averaging`` and ``checkpoints`` what is
kept of it, ``portable`` how a run travels, ``run`` the command, ``ablation`` the paper's table of
modes. These need Lightning, importing this package does not.
"""

from diinn_fast.training.models import MODELS, make_model

__all__ = ["MODELS", "make_model"]
