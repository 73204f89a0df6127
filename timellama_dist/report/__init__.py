"""What a run shows when it is over: pictures and tables; reads results, computes none."""
