"""The magnitude variant of the sign law (arXiv 2408.15664): corrections in proportion to the violation.

    v_e = (mean n - n_e)/mean n ;  b <- b + rate v      (v sums to 0 over experts, and so does b)
Integral action on the load. It converges for a rate below about 1.5 standard deviations of the scores (8 experts,
top-2; less when the plant drifts) and diverges above.
"""

from __future__ import annotations

from chronomoe.chrono.laws.integrating import integrating_law

LAW = integrating_law(lambda violation_LE, settings: settings.rate * violation_LE)
