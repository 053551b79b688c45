"""The sign law with its correction centred over experts (torchtitan): the same selection, and no drift of the mean.

d = rate sign(mean n - n_e) ;  b <- b + d - mean_e d
"""

from __future__ import annotations

from chronomoe.chrono.laws.integrating import integrating_law
from chronomoe.chrono.laws.law import centred

LAW = integrating_law(lambda violation_LE, settings: centred(settings.rate * violation_LE.sign()))
