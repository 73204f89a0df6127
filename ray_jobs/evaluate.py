"""Score an exported model or a baseline; `python ray_jobs/evaluate.py --help` lists every key.

python ray_jobs/evaluate.py --model RUN/model --output scores.json
python ray_jobs/evaluate.py --model RUN/model --data.path other.csv
python ray_jobs/evaluate.py --model naive2 --data.path prepared/m4_hourly --data.horizon 48
"""

import sys

from timellama_dist.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
