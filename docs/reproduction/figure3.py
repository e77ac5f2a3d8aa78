"""Figure 3 of arXiv 2511.10796: the trace of a GRU's kernel, n = 48,000 states and P = 14,592 parameters.

    python docs/reproduction/figure3.py [--seeds 20] [--share 1] [--quick] [--out DIR]

Writes data/figure3.json, figures/figure3.png and figures/figure3.svg.
"""

from __future__ import annotations

from collections.abc import Sequence

from cases import gru, options, write
from figure2 import QUICK_BUDGETS, QUICK_TOLERANCES
from ladder import BUDGETS, TOLERANCES, measure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, draw."""
    o = options(__doc__, argv)
    budgets, tolerances = (QUICK_BUDGETS, QUICK_TOLERANCES) if o.quick else (BUDGETS, TOLERANCES)
    result = write(o.out, "figure3", measure(gru(o.quick), budgets, tolerances, o.seeds, o.share))
    if o.out is not None:
        from trace_figure import draw

        draw(result, o.out, "figure3")


if __name__ == "__main__":
    main()
