"""What a run decides: one schema, read from YAML and the command line."""

from timellama_dist.config.schema import RunConfig

__all__ = ["RunConfig"]
