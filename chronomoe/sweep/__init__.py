"""Many runs from one command: points of a grid or a search, each in a process of its own, that survive what happens."""
