"""The frozen LLM: its folder, its weights block by block, NF4, its fingerprint."""
