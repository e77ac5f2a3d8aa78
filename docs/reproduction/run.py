"""All figures of arXiv 2511.10796, their data and the page, from one command.

    python docs/reproduction/run.py [--seeds 20] [--share 1] [--quick] [--out DIR]

Each figure's script in a process of its own, so that the memory it reports is its own; options are handed on.
"""

from __future__ import annotations

import subprocess
import sys
import time

from cases import HERE, options


def main() -> None:
    """Run the four, figure 1 after those that its data come from, and fill the page."""
    o = options(__doc__)
    for name in ("figure2", "figure3", "figure1", "figure4"):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(HERE / f"{name}.py"), *sys.argv[1:]], check=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if o.out == HERE:
        import claims

        claims.main()


if __name__ == "__main__":
    main()
