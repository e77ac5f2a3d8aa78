"""All benchmarks by one command, or those named.

    python docs/benchmarks/run.py [NAME …] [--quick] [--gpu] [--threads 1] [--out DIR]

Each runs in a process of its own, with that number of threads, and brings its tables and figures up to date (`--out`
writes them elsewhere, `--quick` nowhere). A benchmark that fails is reported at the end, and the others go on.
`--gpu` runs those that know a GPU, and nothing where there is none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PERFORMANCE = ("startup", "passes", "time_to_accuracy", "scaling")
STATISTICS = (
    *("accuracy", "calibration", "overhead", "models", "kernel_coverage", "spectrum", "krylov"),
    *("balanced", "gru", "mnist", "memory", "tracking"),
)
ON_GPU = ("passes", "time_to_accuracy", "scaling")


def command(name: str, quick: bool, gpu: bool, out: Path | None) -> list[str]:
    """The command line of one benchmark."""
    options = [*(["--quick"] if quick else []), *(["--gpu"] if gpu else [])]
    return [sys.executable, str(HERE / f"{name}.py"), *options, *(["--out", str(out)] if out else [])]


def has_gpu() -> bool:
    """Whether PyTorch sees one."""
    import torch

    return torch.cuda.is_available()


def main() -> int:
    """Parse the command line, run, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = (*PERFORMANCE, *STATISTICS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: the first four")
    parser.add_argument("--all", action="store_true", help="all of them, some hours")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--gpu", action="store_true", help="on the GPU; skipped where there is none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for all results; default: docs")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = options.names or (names if options.all else PERFORMANCE)
    if options.gpu:
        chosen = [name for name in chosen if name in ON_GPU]
        if not has_gpu():
            print("no GPU: skipped " + ", ".join(chosen))
            return 0
        if options.out is None and not options.quick:
            parser.error("--gpu needs --out DIR, lest the numbers of the CPU be replaced")
    threads = str(options.threads)
    eigen = f"--xla_cpu_multi_thread_eigen={'false' if options.threads == 1 else 'true'}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {eigen} intra_op_parallelism_threads={threads}".strip()
    env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "XLA_FLAGS": flags}
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        if subprocess.run(command(name, options.quick, options.gpu, options.out), env=env).returncode:
            failed.append(name)
        print(f"== {name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if failed:
        print("failed: " + ", ".join(failed))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
