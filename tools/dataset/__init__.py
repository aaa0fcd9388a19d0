"""Tools for data sets: check, pack, draw and make them."""
