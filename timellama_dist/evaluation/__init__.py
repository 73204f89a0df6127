"""Errors, baselines and the evaluation job."""
