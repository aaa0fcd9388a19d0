"""What the trainer calls between steps: evaluation, checkpoints, metrics."""
