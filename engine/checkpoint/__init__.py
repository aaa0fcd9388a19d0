"""Write, find and read checkpoints, and start from those of others."""
