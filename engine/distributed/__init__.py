"""Run several processes: launch, shards, evaluation, batch norm."""
