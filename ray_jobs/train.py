"""Train Time-LlaMA; `python ray_jobs/train.py --help` lists every key.

python ray_jobs/train.py
python ray_jobs/train.py --data.path my_table.csv --data.horizon 24
ray job submit --working-dir . -- python ray_jobs/train.py --config etth1
"""

import sys

from timellama_dist.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
