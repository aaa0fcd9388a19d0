"""Build data loaders: sample order, batches, bad samples."""
