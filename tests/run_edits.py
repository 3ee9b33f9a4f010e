"""The published model and ours under the same edits, side by side, as a table.

    python tests/run_edits.py [WORD]        edits whose name has the word

Fetches nothing: the published model is written in `tests/helpers/published.py`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.helpers.edits import EDITS, SILENT
from tests.helpers.side_by_side import compare, effect, other_mode


def main(word: str = "") -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    chosen = [name for name in EDITS if word in name]
    failed = 0
    print(f"{'edit':64} {'effect':>8}  ours beside it")
    for name in chosen:
        found = compare(name, 3, False, torch.float64)
        found += compare(name, *other_mode(name), torch.float32)
        moved = "none" if name in SILENT else f"{effect(name):.1e}"
        print(f"{name:64} {moved:>8}  {found[0] if found else 'same'}", flush=True)
        failed += bool(found)
    print(f"{len(chosen) - failed} of {len(chosen)} the same")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
