"""The plant: a Mixtral language model in pure PyTorch. It knows nothing of Lightning, Hydra or the controller."""
