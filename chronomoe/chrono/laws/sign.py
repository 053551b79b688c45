"""Auxiliary-loss-free balancing by the sign of the violation (arXiv 2408.15664), as in DeepSeek-V3.

    b_e <- b_e + rate sign(mean n - n_e),  sign(0) = 0
Published with rate 1e-3 on sigmoid scores. In a stationary plant it ends in a limit cycle as large as the rate; the
mean of b drifts freely.
"""

from __future__ import annotations

from chronomoe.chrono.laws.integrating import integrating_law

LAW = integrating_law(lambda violation_LE, settings: settings.rate * violation_LE.sign())
