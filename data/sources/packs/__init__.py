"""Packs: foregrounds and backgrounds stored for fast random crops."""
