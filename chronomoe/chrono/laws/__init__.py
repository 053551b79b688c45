"""Control laws, one a file. A new one: a file with `LAW = Law(...)`, a line here, and a YAML in `configs/chrono`."""

from chronomoe.chrono.laws import chronovisor, documented, off
from chronomoe.chrono.laws.law import Law

LAWS: dict[str, Law] = {
    "off": off.LAW,
    "documented": documented.LAW,
    "chronovisor": chronovisor.LAW,
}
