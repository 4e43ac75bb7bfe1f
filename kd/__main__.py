"""Let ``python -m kd`` do what the command ``kd`` does."""

import sys

from kd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
