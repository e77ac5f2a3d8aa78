"""The results as tables of 80 columns, and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import traceest
from traceest_adapters.demo.measure import Comparison
from traceest_adapters.demo.run import ModelResults, Results

WIDTH = 80
COLUMNS = {"": 17, "estimate": 8, "95 % interval": 16, "exact": 7, "passes": 7, "time": 11, "speed-up": 8}
NAMES = {"jax": "JAX", "torch": "PyTorch"}
WHENS = {"before": "before training", "after": "after training", "before and after": "before with after"}


def print_tables(results: Results, plot: Path | None) -> None:
    """Print a table for each model and a summary to stdout, 80 columns wide wherever it goes."""
    console = Console(file=sys.stdout, width=WIDTH, highlight=False, emoji=False)
    with console.capture() as captured:
        _print_all(console, results)
        if plot is not None:
            console.print(f"Plot: {plot}", soft_wrap=True, markup=False)
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    # A terminal without × and → is no reason to lose a minute's results.
    print(text.encode(console.encoding, "replace").decode(console.encoding), end="")


def _print_all(console: Console, results: Results) -> None:
    o, intervals = results.options, len(results.comparisons)
    framework = f"{NAMES[o.backend]} {results.version}"
    console.print(
        f"Neural Tangent Kernels in {framework}, estimated from {o.probes} probes; seed {o.seed}\n"
        "passes (of automatic differentiation) and time are those of estimate/exact"
    )
    for model in results.models:
        _print_model(console, model, o.steps)
    held = sum(c.holds for c in results.comparisons)
    console.print(f"\n{held} of {intervals} intervals hold the exact value", end="")
    console.print("." if held == intervals else "; ! marks the exact values outside.", end="")
    console.print(f" Total time {results.seconds:.0f} s.")


def _print_model(console: Console, model: ModelResults, steps: int) -> None:
    start, end = model.track[0], model.track[-1]
    console.print(
        f"\n[bold]{model.name}[/], state: {model.state}, for {model.n_examples} images\n"
        f"kernel {model.n} × {model.n}, of {model.n_params} parameters; "
        f"test accuracy {start.accuracy:.1%} → {end.accuracy:.1%} in {steps} steps\n"
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    for header, width in COLUMNS.items():
        table.add_column(header, justify="right" if header else "left", width=width, no_wrap=True)
    when = None
    for c in model.comparisons:
        if c.when != when:
            when = c.when
            table.add_row(f"[italic]{WHENS[when]}[/]")
        table.add_row(*_cells(c))
    console.print(table)


def _cells(c: Comparison) -> tuple[str, ...]:
    low, high = c.estimate.confidence_interval()
    mark = "" if c.holds else "!"
    return (
        f" {c.statistic}",
        fitting(lambda digits: number(float(c.estimate), digits), "estimate"),
        fitting(lambda digits: f"[{number(low, digits)}, {number(high, digits)}]", "95 % interval").replace("[", r"\["),
        fitting(lambda digits: number(float(c.exact), digits) + mark, "exact"),
        f"{c.estimate.n_products}/{c.exact.n_products}",
        f"{duration(c.seconds)}/{duration(c.exact_seconds)}",
        f"{number(c.speed_up, 2)}×",
    )


def fitting(cell: Callable[[int], str], column: str) -> str:
    """`cell` of as many significant digits, at most four, as fit the column: a number cut off would be another one."""
    texts = [cell(digits) for digits in (4, 3, 2, 1)]
    return next((text for text in texts if len(text) <= COLUMNS[column]), texts[-1])


def number(x: float, digits: int = 4) -> str:
    """`x` with that many significant digits, without an exponent where six places do.

    Examples
    --------
    >>> number(123456.7), number(0.98765432), number(1.5e-7), number(23.456, 2)
    ('123500', '0.9877', '1.500e-7', '23')
    """
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")  # of the rounded number: 0.996 to two digits is 1.0
    if not 1e-3 <= abs(x) < 999_950:
        return f"{mantissa}e{int(exponent)}"
    places = digits - 1 - int(exponent)
    return f"{round(x, places):.{max(0, places)}f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best, in at most five characters up to a day.

    Examples
    --------
    >>> duration(0.0123), duration(4.567), duration(0.00095)
    ('12ms', '4.6s', '950µs')
    """
    if seconds < 0.995e-6:
        return "<1µs"
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 995 * size:
            return f"{number(seconds / size, 2)}{unit}"
    return f"{number(seconds, 2)}s"


def as_json(results: Results, plot: Path | None) -> str:
    """The same as `print_tables` shows, and the statistics along training, for a program."""
    o = results.options
    return json.dumps(
        {
            "traceest": traceest.__version__,
            "backend": o.backend,
            "backend_version": results.version,
            "steps": o.steps,
            "probes": o.probes,
            "seed": o.seed,
            "seconds": results.seconds,
            "intervals": len(results.comparisons),
            "intervals_holding_exact": sum(c.holds for c in results.comparisons),
            "plot": None if plot is None else str(plot),
            "models": [_model_dict(model) for model in results.models],
        },
        indent=2,
        allow_nan=False,
    )


def _model_dict(model: ModelResults) -> dict[str, Any]:
    return {
        "name": model.name,
        "state": model.state,
        "n": model.n,
        "n_examples": model.n_examples,
        "n_params": model.n_params,
        "accuracy": {"before": model.track[0].accuracy, "after": model.track[-1].accuracy},
        "comparisons": [
            {
                "when": c.when,
                "statistic": c.statistic,
                "estimate": c.estimate.to_dict() | {"seconds": c.seconds},
                "exact": c.exact.to_dict() | {"seconds": c.exact_seconds},
                "speed_up": c.speed_up,
                "interval_holds_exact": c.holds,
            }
            for c in model.comparisons
        ],
        "along_training": [
            {"step": p.step, "accuracy": p.accuracy} | {name: e.to_dict() for name, e in p.estimates.items()}
            for p in model.track
        ],
    }
