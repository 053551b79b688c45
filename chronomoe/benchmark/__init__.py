"""`python -m chronomoe.benchmark`: training speed, memory and loss beside other implementations of the same model."""
