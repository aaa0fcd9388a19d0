"""Matte clips: trimaps carried from keyframes by optical flow, and alpha stabilised along it."""
