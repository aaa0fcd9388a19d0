"""Training as such: configs, schedule, step, checkpoints and processes. Nothing here knows what is trained."""
