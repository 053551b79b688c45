"""How pressure falls over a long generation: half-life, shape, cliffs. Numbers in, numbers out; knows no models."""
