"""Checkpoints, free of world size and ZeRO stage."""
