"""Search configurations of Time-LlaMA; `python ray_jobs/tune.py --help` lists every key of a run.

python ray_jobs/tune.py
python ray_jobs/tune.py --search my_search.yaml --config etth1
ray job submit --working-dir . -- python ray_jobs/tune.py --run.dir /shared/searches/first
"""

import sys

from timellama_dist.cli.tune import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
