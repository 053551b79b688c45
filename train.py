"""Train a Mixture-of-Experts language model under closed-loop routing control: `python train.py [key=value …]`."""

import gc
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Returns the validation loss, the objective of a sweep."""
    from chronomoe.config import parse
    from chronomoe.run import run

    return run(parse(cfg), Path(HydraConfig.get().runtime.output_dir)).get("val_loss")


if __name__ == "__main__":
    gc.disable()  # imports leave no garbage, and looking for it takes a fifth of the start; training looks again
    from chronomoe.entry import guarded

    guarded(main)
