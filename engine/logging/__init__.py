"""Log files, metrics writers and the record of a run."""
