"""chronomoe: Mixture-of-Experts language models whose routing is under closed-loop control."""

__version__ = "0.6.0"
