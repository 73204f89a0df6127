"""The worker of a run: one `Trainer`, its data, its checkpoints."""
