"""Read image files into arrays and write arrays to files."""
