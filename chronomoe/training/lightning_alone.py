"""Lightning, imported without what it would bring along.

Lightning imports torchmetrics, and torchmetrics imports matplotlib (to plot metrics) and transformers (to score texts)
where they are installed; Lightning itself imports rich. None of it is used here, and it takes a quarter of a start.
All three ask a `RequirementCache` first, and here it says no.
"""

from __future__ import annotations

import re
import sys

UNUSED = {"matplotlib", "transformers", "rich"}


def import_lightning() -> None:
    """Import it alone; a process that has imported Lightning or torchmetrics already keeps what it has.

    Afterwards torchmetrics takes these packages for missing in this process, whoever asks it; importing them directly,
    as figures do, goes on as always.
    """
    if "lightning" in sys.modules or "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core.imports import RequirementCache

    def is_used(cache: RequirementCache) -> bool:
        name = re.match(r"[\w-]*", cache.requirement or cache.module or "")
        if name and name.group() in UNUSED:
            cache.available, cache.message = False, f"{name.group()} was left out when Lightning was imported"
            return False
        return is_available(cache)

    is_available = RequirementCache.__bool__
    RequirementCache.__bool__ = is_used  # type: ignore[method-assign, assignment]
    try:
        import lightning  # noqa: F401
    finally:
        RequirementCache.__bool__ = is_available  # type: ignore[method-assign]
