"""The `traceest` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import traceest

USAGE_ERROR = 2
INTERRUPTED = 130
DEMO_NEEDS = {"rich": "rich", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `traceest` command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if absent.

    Returns
    -------
    int
        Exit status: 0; 2 where an extra is missing or an argument does not fit; 130 when interrupted.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    problem = _problem(args)
    if problem:
        print(f"traceest {args.command}: {problem}", file=sys.stderr)
        return USAGE_ERROR
    try:
        return _demo(args)
    except KeyboardInterrupt:
        return INTERRUPTED


def _demo(args: argparse.Namespace) -> int:
    # Imported here: the command must be able to say what is missing before it needs it.
    from traceest_adapters.demo import report, run

    options = run.Options(args.backend, args.steps, args.probes, args.seed)
    results = run.run(options)
    plot = None if args.no_plot else args.output
    if plot is not None:
        from traceest_adapters.demo.plot import write_plot

        write_plot(results, plot)
    if args.json:
        print(report.as_json(results, plot))
    else:
        report.print_tables(results, plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="traceest", description="Traces, norms and effective ranks of Neural Tangent Kernels, with error bars."
    )
    parser.add_argument("--version", action="version", version=f"traceest {traceest.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo: Any = commands.add_parser(
        "demo",
        help="train a small GRU and a small MLP on real digits and measure their kernels",
        description="Train a small GRU and a small MLP on the 8×8 digits of scikit-learn, and measure trace, Frobenius "
        "norm, effective rank and alignment of their Neural Tangent Kernels along the way, beside the exact values. "
        "About a minute on two cores.",
    )
    demo.add_argument("--backend", choices=("jax", "torch"), help="default: the one installed, JAX if both are")
    demo.add_argument(
        "--steps",
        type=_at_least(1),
        default=300,
        metavar="N",
        help="training steps of each model (default: %(default)s)",
    )
    demo.add_argument(
        "--probes",
        type=_at_least(3),
        default=8,
        metavar="N",
        help="probes an estimate, at least 3 (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="seed of split, weights, batches and probes (default: %(default)s)",
    )
    demo.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("traceest-demo.png"),
        metavar="PNG",
        help="where the plot goes (default: %(default)s)",
    )
    demo.add_argument("--no-plot", action="store_true", help="write no plot")
    return parser


def _at_least(low: int) -> Any:
    """An argparse type: integers from `low` on."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    parse.__name__ = "integer"  # argparse names the type by it when `int` fails
    return parse


def _problem(args: argparse.Namespace) -> str | None:
    """Fill in the backend; what stands in the way of a demo, in a line, or None."""
    found = [backend for backend in ("jax", "torch") if find_spec(backend)]
    if args.backend is None and not found:
        return "neither JAX nor PyTorch is installed: pip install 'traceest[demo,jax]' or 'traceest[demo,torch]'."
    args.backend = args.backend or found[0]
    if args.backend not in found:
        return f"{args.backend} is not installed: pip install 'traceest[demo,{args.backend}]'."
    needed = [module for module in DEMO_NEEDS if not (args.no_plot and module == "matplotlib")]
    missing = [DEMO_NEEDS[module] for module in needed if not find_spec(module)]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'traceest[demo]'."
    # Seen now rather than after a minute's work.
    if not args.no_plot and not args.output.parent.is_dir():
        return f"--output {args.output}: there is no folder {args.output.parent}."
    if not args.no_plot and args.output.is_dir():
        return f"--output {args.output}: that is a folder; give the name of a PNG file."
    return None


if __name__ == "__main__":
    sys.exit(main())
