"""Reads what runs left on disk: a run's records, its figures, its report."""
