"""`python -m timellama_dist`: the command `timellama` where it isn't installed."""

import sys

from timellama_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
