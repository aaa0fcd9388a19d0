"""Find faults in a data set's files before a run does: the checks behind `tools/check_dataset.py`."""
