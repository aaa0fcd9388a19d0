"""Training data sets, and folders of test images."""
