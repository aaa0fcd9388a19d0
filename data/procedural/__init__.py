"""Foregrounds drawn by program, with exact alphas."""
