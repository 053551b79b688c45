"""Control laws, one a file. A new one: a file with `LAW = Law(...)`, a line here, and a YAML in `configs/chrono`."""

from chronomoe.chrono.laws import (
    bip,
    centered_sign,
    chronovisor,
    documented,
    off,
    proportional,
    quantile,
    replay,
    sham,
    sign,
    sinkhorn,
    smebu,
)
from chronomoe.chrono.laws.law import Law

LAWS: dict[str, Law] = {
    "off": off.LAW,
    "documented": documented.LAW,
    "chronovisor": chronovisor.LAW,
    "sign": sign.LAW,
    "centered_sign": centered_sign.LAW,
    "proportional": proportional.LAW,
    "smebu": smebu.LAW,
    "quantile": quantile.LAW,
    "bip": bip.LAW,
    "sinkhorn": sinkhorn.LAW,
    "replay": replay.LAW,
    "sham": sham.LAW,
}
