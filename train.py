"""Train a Mixture-of-Experts language model under closed-loop routing control: `python train.py [key=value …]`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from chronomoe.config import parse
from chronomoe.entry import guarded
from chronomoe.run import run


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Returns the validation loss, the objective of a sweep."""
    return run(parse(cfg), Path(HydraConfig.get().runtime.output_dir)).get("val_loss")


if __name__ == "__main__":
    guarded(main)
