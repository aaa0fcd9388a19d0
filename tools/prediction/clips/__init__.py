"""A clip for tools/predict.py: what to make of it, its trimaps, and the run in segments."""
