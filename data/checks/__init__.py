"""Find faults in a data set's files before a run does: the checks behind `tools/dataset/check_dataset.py`."""
