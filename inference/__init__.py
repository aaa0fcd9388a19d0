"""Matting an image with a trained network."""
