"""``python -m tinybnn`` is the command ``tinybnn``."""

import sys

from tinybnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
