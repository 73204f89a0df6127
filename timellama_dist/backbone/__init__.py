"""The frozen LLM: found, read block by block, quantised, fingerprinted."""
