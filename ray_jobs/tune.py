"""Search configurations of Time-LlaMA; `python ray_jobs/tune.py --help` lists every key of a run.

python ray_jobs/tune.py
python ray_jobs/tune.py --search my_search.yaml --config ray_jobs/configs/etth1.yaml
ray job submit --working-dir . -- python ray_jobs/tune.py --run.dir /shared/searches/first
"""

import sys
from pathlib import Path

from timellama_dist.tune.search import main

SMALL = Path(__file__).parent / "configs" / "searches" / "small.yaml"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], default_search=SMALL))
