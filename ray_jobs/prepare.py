"""Turn a table into a prepared data set; `python ray_jobs/prepare.py --help` lists the options.

python ray_jobs/prepare.py --input my_table.csv --output prepared/my_table
"""

import sys

from timellama_dist.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
