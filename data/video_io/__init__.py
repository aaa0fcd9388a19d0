"""Clips <-> arrays: frames with their exact times, read and written by PyAV."""
