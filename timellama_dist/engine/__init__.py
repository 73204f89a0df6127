"""What runs inside one worker: DeepSpeed engine, training loop, evaluation, checkpoints."""
