"""`python -m toykern` is the `toykern` command."""

import sys

from toykern.cli import main

if __name__ == "__main__":
    sys.exit(main())
