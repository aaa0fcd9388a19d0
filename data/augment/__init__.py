"""Random crops, warps and colour changes of training samples."""
