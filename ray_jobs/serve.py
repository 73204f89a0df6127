"""Serve an exported model over HTTP; `python ray_jobs/serve.py --help` lists every key.

python ray_jobs/serve.py --model RUN/model
serve run ray_jobs.serve:app model=RUN/model
"""

import sys

from timellama_dist.cli.serve import main
from timellama_dist.serve.app import app

__all__ = ["app"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
