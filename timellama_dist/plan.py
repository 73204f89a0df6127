"""`python -m timellama_dist.plan`: the command `timellama plan` under its first name."""

import sys

from timellama_dist.cli.plan import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
