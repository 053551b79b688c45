"""The pressure half-life of models: measured, with nulls and intervals."""
