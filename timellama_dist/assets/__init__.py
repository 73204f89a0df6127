"""Public data sets and backbones, by name and sha256."""
