"""From a user's table to micro-batches of windows: prepare, index, scale, stream."""
