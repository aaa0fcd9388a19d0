"""What is wrong with a data set's files, before a training finds out: the work behind `tools/check_dataset.py`."""
