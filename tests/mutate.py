"""A mutation run: every line that `mutants.toml` changes has to make a test of the default run fail.

    python -m tests.mutate                    # all of them, one after another
    python -m tests.mutate -j 2 uncertainty   # of files whose path has that word, on two cores

Each mutant is applied by itself, in a copy of the tree. The tests that are expected to catch it run first, in a fork of
a process that has the frameworks imported; the whole default run follows only where these pass. A table and the share
of mutants that were caught are printed; the exit status is 1 if it is below 95 %.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
WANTED = 0.95
PATIENCE = 900
"""Seconds after which a mutant is taken to have hung a test."""
OPTIONS = ["-x", "-q", "--no-header", "-p", "no:cacheprovider"]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "dist", "build", "node_modules")

_times = count(1)


@dataclass(frozen=True)
class Mutant:
    """One change to one line, and the tests that are expected to see it."""

    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The source with the change.

        Raises
        ------
        ValueError
            If the text is not in exactly one place, or the change is none.
        """
        found = source.count(self.old)
        if found != 1 or "\n" in self.old + self.new or self.old == self.new:
            raise ValueError(
                f"mutants.toml: {self.old!r} is {found} times in {self.path}, expected once; name it anew."
            )
        return source.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.path}: {self.old} → {self.new}"


def mutants(path: Path = ROOT / "tests" / "mutants.toml") -> list[Mutant]:
    """All of the list: a table for each file, with its `tests` and its `lines`, [old, new] or [old, new, tests]."""
    return [
        Mutant(file, old, new, tuple(own[0].split() if own else table["tests"].split()))
        for file, table in tomllib.loads(path.read_text()).items()
        for old, new, *own in table["lines"]
    ]


class Copy:
    """A copy of the tree, to change and to run tests in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log = folder / "tree", folder / "log"
        shutil.copytree(ROOT, self.root, ignore=LEFT_OUT)
        self.environment = os.environ | {
            "PYTHONPATH": str(self.root),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }

    def write(self, path: str, text: str) -> None:
        """Change a file, with a time of its own: equal sizes and seconds would have Python take old bytecode."""
        (self.root / path).write_text(text)
        when = time.time() + 10 * next(_times)
        os.utime(self.root / path, (when, when))

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """Apply the mutant for as long as this lasts."""
        source = (self.root / mutant.path).read_text()
        self.write(mutant.path, mutant.applied(source))
        try:
            yield
        finally:
            self.write(mutant.path, source)

    def failing(self, tests: tuple[str, ...]) -> str:
        """The first of these tests that fails, in a fork; "" if none does."""
        sys.stdout.flush()
        began, child = time.monotonic(), os.fork()
        if not child:
            self._run(tests)
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() - began > PATIENCE:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hung"
            time.sleep(0.05)
        return self._first_failure() if os.waitpid(child, 0)[1] else ""

    def _run(self, tests: tuple[str, ...]) -> None:
        """In the fork, which ends here."""
        status = 70
        try:
            os.setsid()
            log = os.open(self.log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for output in (1, 2):
                os.dup2(log, output)
            os.chdir(self.root)
            os.environ |= self.environment
            sys.path.insert(0, str(self.root))
            status = pytest.main([*OPTIONS, *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
        finally:
            os._exit(int(status))

    def failing_of_all(self) -> str:
        """The first test of the whole default run that fails; "" if none does."""
        command = [sys.executable, "-m", "pytest", *OPTIONS, "-n", str(os.cpu_count())]
        with open(self.log, "w") as log:
            done = subprocess.run(command, cwd=self.root, env=self.environment, stdout=log, stderr=log, check=False)
        return self._first_failure() if done.returncode else ""

    def _first_failure(self) -> str:
        text = self.log.read_text(errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*?)(?: - .*)?$", text, re.M)
        return found.group(1) if found else "ended: " + (text.strip().splitlines() or ["nothing was said"])[-1]


_copy: Copy


def _make_copy(folder: str) -> None:
    """Of a worker's own."""
    global _copy
    _copy = Copy(Path(folder) / str(os.getpid()))


def _expected(mutant: Mutant) -> str:
    """What catches it of the tests that are expected to; "" if none does."""
    with _copy.changed(mutant):
        return _copy.failing(mutant.tests)


def _told(mutant: Mutant, caught: str, otherwise: str) -> None:
    print(f"{'caught' if caught else otherwise:9}{mutant}\n         {caught or '–'}", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants whose file, or whose text, has one of these in it")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("--expected-only", action="store_true", help="leave the whole default run out")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without any mutant first")
    options = parser.parse_args()
    chosen = [m for m in mutants() if not options.words or any(w in f"{m.path} {m.old}" for w in options.words)]
    for mutant in chosen:
        mutant.applied((ROOT / mutant.path).read_text())
    from tests import conftest  # noqa: F401  # the frameworks, as tests set them up; forks have them then

    with TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        whole = Copy(Path(folder) / "whole")
        everyone = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        if not options.trust and (failed := whole.failing(everyone)):
            print(f"{failed} fails without any mutant:\n{whole.log.read_text()}")
            return 2
        survivors = []
        with get_context("fork").Pool(options.jobs, _make_copy, (folder,)) as pool:
            for mutant, caught in zip(chosen, pool.imap(_expected, chosen), strict=True):
                survivors += [] if caught else [mutant]
                _told(mutant, caught, "not yet")
        for mutant in [] if options.expected_only else list(survivors):
            with whole.changed(mutant):
                if caught := whole.failing_of_all():
                    survivors.remove(mutant)
                _told(mutant, caught, "SURVIVED")
    share = 1 - len(survivors) / max(1, len(chosen))
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught, {share:.1%}")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
