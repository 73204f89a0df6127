"""Prepared data become micro-batches of windows."""
