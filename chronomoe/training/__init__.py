"""Training: the Lightning module, optimizer and schedule, parallelism, checkpoints, what is logged."""
