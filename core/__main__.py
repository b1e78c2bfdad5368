"""`python -m tttunet` is the same as the command `tttunet`."""

import sys

from tttunet.cli import main

if __name__ == "__main__":
    sys.exit(main())
