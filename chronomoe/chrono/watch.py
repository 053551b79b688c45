"""What is watched beside the law: whether the field does what it is meant to, and how experts' outputs agree.

Nothing here steers; it only has a memory (the last preference, three EMAs of phi), which a checkpoint keeps.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronomoe.chrono import phi, phi_memory
from chronomoe.chrono.metrics import alignment
from chronomoe.chrono.observation import Observation, share


class Watch:
    def __init__(self, num_layers: int, num_experts: int, *, phi: bool, alone: bool) -> None:
        """`alone`: a token has one expert (top-1), so that phi is its cross-token form and no partner is compared."""
        self.state = {"preference_LE": torch.full((num_layers, num_experts), 1.0 / max(1, num_experts))}
        if phi:
            self.state |= phi_memory.start(num_layers, num_experts)
        self.alone = alone
        self.metrics: dict[str, Tensor] = {}
        self.phi_LE: Tensor | None = None
        """The latest excess phi (cross-token where alone), for the record; NaN without a reading; None: unmeasured."""

    def to(self, device: torch.device) -> None:
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}

    def see(self, observation: Observation, bias_LE: Tensor) -> None:
        """`bias_LE` is what was in force during the observed step."""
        if "preference" in observation.readings:
            share_LE, preference_LE = (
                share(counts)
                for counts in (observation.tokens_per_expert_LE, observation.readings["preference"][..., 0])
            )
            self.metrics["chrono/follow"] = alignment.follow(
                share_LE, preference_LE, self.state["preference_LE"]
            ).mean()
            self.metrics["chrono/knowledge"] = alignment.knowledge(bias_LE, preference_LE).mean()
            self.state["preference_LE"] = preference_LE
        if "phi_sum_MLE" in self.state:
            self._see_phi(phi.decode(observation.readings["phi"]), observation.tokens_per_expert_LE)

    def _see_phi(self, reading: phi.PhiReading, tokens_per_expert_LE: Tensor) -> None:
        self.phi_LE = reading.cross_token_LE if self.alone else reading.excess_LE
        self.state |= phi_memory.step(self.state, self.phi_LE)
        remembered = phi_memory.read(self.state)
        values = {
            "phi_cross_token": reading.cross_token_LE,
            "phi_fast": remembered.fast_LE,
            "phi_mid": remembered.mid_LE,
            "phi_slow": remembered.slow_LE,
            "phi_degradation": remembered.degradation_LE,
        }
        if not self.alone:
            values |= {"phi_loo": reading.loo_LE, "phi_excess": reading.excess_LE}
        self.metrics |= {f"chrono/{name}": values_LE.nanmean() for name, values_LE in values.items()}
        layers_L = phi.layer_documented(reading.documented_LE, tokens_per_expert_LE)
        self.metrics["chrono/phi_documented"] = layers_L.nanmean()
        self.metrics["chrono/phi_stale_steps"] = remembered.stale_steps_LE.max()
