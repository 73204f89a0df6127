"""Programs that measure; what they found stands in the README."""
