"""`python -m timellama_dist.report`: the command `timellama report` under its first name."""

import sys

from timellama_dist.cli.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
