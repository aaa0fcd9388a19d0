"""Write, find and read checkpoints, and load published or exported weights."""
