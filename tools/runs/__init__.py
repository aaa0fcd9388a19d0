"""Tools for training runs: install detectron2, run the demo, compare runs, gather a sharded checkpoint."""
