"""The figures of a sweep as PNG and SVG files, one a block of its page, with the same colours.

| file | shows |
|---|---|
| `differences` | paired differences of validation loss and late MaxVio, with 95% intervals and every pair |
| `heat_map` | mean paired difference of the validation loss over two settings, where two were swept |
| `validation-loss`, `loss-difference`, `training-loss`, `coherence`, `max-vio` | curves by tokens, with bands |
| `usage` | utilisation of every expert over time, an arm a row |
| `lens`, `lens-path` | the lens of every expert, an arm a row; the paths of all lenses in two dimensions |
| `specialisation` | by domain, beside the untrained twin's and the references |

What a page may show of hundreds of arms one by one, a figure shows of the first few, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chronomoe.study.effects_figures import draw_differences, draw_heat_map, draw_specialisation
from chronomoe.study.expert_figures import draw_lens, draw_paths, draw_usage
from chronomoe.study.figures import DPI
from chronomoe.study.progress import progress
from chronomoe.study.sweep_curve_figure import draw_kind
from chronomoe.study.sweep_report import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_sweep(sweep: Sweep) -> list[Path]:
    """Write every figure the sweep has records for to `figures/`; returns the files."""
    from matplotlib import rc_context

    folder = sweep.folder / "figures"
    folder.mkdir(exist_ok=True)
    drawings: dict[str, Callable[[Sweep], Figure | None]] = {
        "differences": draw_differences,
        "heat_map": draw_heat_map,
        **{kind.name: partial(draw_kind, kind=kind) for kind in sweep.bands},
        "usage": draw_usage,
        "lens": draw_lens,
        "lens-path": draw_paths,
        "specialisation": draw_specialisation,
    }
    written = []
    for name, draw in progress(list(drawings.items()), "figures", "figure"):
        figure = draw(sweep)
        if figure is None:
            continue
        for ending in ("png", "svg"):
            written.append(folder / f"{name}.{ending}")
            with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # text as text, the same ids every time
                figure.savefig(written[-1], dpi=DPI, metadata={"Date": None} if ending == "svg" else None)
            figure.set_layout_engine("none")  # laid out once; the second file keeps the places
    return written
