"""``python -m diinn_fast``: the console program."""

import sys

from diinn_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
