"""A Summary in print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from traceest.uncertainty.estimate import Estimate, _to_host

if TYPE_CHECKING:
    from traceest.kernels.summary import Summary

COLUMNS = {
    "trace": "trace",
    "frobenius_norm": "‖K‖",
    "effective_rank": "effective rank",
    "target_alignment": "with target",
    "alignment_with_whole": "with whole",
}


def table(s: Summary) -> str:
    """A row a kernel and a row a group of each, then the alignments of several kernels."""
    try:
        return _table(s)
    except Exception:  # inside a trace there are no values to show
        return f"Summary({', '.join(s.estimates)})"


def _table(s: Summary) -> str:
    everything = {**s.estimates, **next(iter(s.groups.values())).estimates} if s.groups else s.estimates
    columns = {name: title for name, title in COLUMNS.items() if name in everything}
    rows = [["", *columns.values()]]
    for a, kernel in enumerate(s.names):
        rows.append([kernel, *(_cell(s, name, a) for name in columns)])
        rows += [[f"  {label}", *(_cell(part, name, a) for name in columns)] for label, part in s.groups.items()]
    blocks = [_aligned(rows)]
    if s.alignment is not None:
        k = len(s.names)
        body = [[f"with {s.names[a]}", *(_shown(s.alignment, (a, b)) for b in range(k))] for a in range(k)]
        blocks.append(_aligned([["alignment", *s.names], *body]))
    e = s.trace
    blocks.append(f"{e.method}; n_matvecs={e.n_matvecs}, n_rmatvecs={e.n_rmatvecs}; ± is one standard error")
    return "\n".join(blocks)


def _cell(s: Summary, name: str, a: int) -> str:
    e = vars(s)[name]
    return "" if e is None else _shown(e, (a,) if len(s.names) > 1 else ())


def _shown(e: Estimate, index: tuple[int, ...]) -> str:
    """The value to the second digit of its standard error."""
    value, stderr = (float(np.asarray(_to_host(x))[index]) for x in (e.value, e.stderr))
    if stderr <= 1e-12 * abs(value):
        return f"{value:.5g}"
    if np.isnan(stderr):
        return f"{value:.4g} ± ?"
    decimals = 1 - math.floor(math.log10(stderr))
    if decimals > 6 or abs(value) >= 1e7:
        return f"{value:.4g} ± {stderr:.1g}"
    return f"{value:.{max(0, decimals)}f} ± {stderr:.{max(0, decimals)}f}"


def _aligned(rows: list[list[Any]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join("  ".join(p(c, w) for p, c, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows)
