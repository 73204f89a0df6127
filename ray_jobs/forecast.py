"""Forecast every series of a table; `python ray_jobs/forecast.py --help` lists every key.

python ray_jobs/forecast.py --model RUN/model --input my_table.csv --output forecasts
python ray_jobs/forecast.py --model RUN/model --input s3://lake/table --output s3://lake/forecasts
python ray_jobs/forecast.py --model RUN/model --input my_table.csv --output backtest --cutoffs 30
"""

import sys

from timellama_dist.cli.forecast import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
