"""Figure 2 of arXiv 2511.10796: the trace of an MLP's kernel, n = 3,200 states and P = 64,704 parameters.

    python docs/reproduction/figure2.py [--seeds 20] [--share 1] [--quick] [--out DIR]

Writes data/figure2.json, figures/figure2.png and figures/figure2.svg.
"""

from __future__ import annotations

from collections.abc import Sequence

from cases import mlp, options, write
from ladder import BUDGETS, TOLERANCES, measure

QUICK_BUDGETS, QUICK_TOLERANCES = (3, 6), (0.1,)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, draw."""
    o = options(__doc__, argv)
    budgets, tolerances = (QUICK_BUDGETS, QUICK_TOLERANCES) if o.quick else (BUDGETS, TOLERANCES)
    result = write(o.out, "figure2", measure(mlp(o.quick), budgets, tolerances, o.seeds, o.share))
    if o.out is not None:
        from trace_figure import draw

        draw(result, o.out, "figure2")


if __name__ == "__main__":
    main()
