"""Load configs, apply overrides, and build what they name."""
