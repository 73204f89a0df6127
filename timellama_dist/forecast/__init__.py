"""Forecasts from an exported model: the Python class and the batch job."""
