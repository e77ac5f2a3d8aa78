"""The demo from end to end: train, estimate on the way, compare with the exact values."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from traceest_adapters.demo import data, measure
from traceest_adapters.demo.learner import Learner

N_COMPARISONS = 7  # trace, norm and effective rank of two kernels, and one alignment


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    backend: str
    steps: int
    probes: int
    seed: int


@dataclass(frozen=True)
class ModelResults:
    """One model's measurements; its kernel is n×n, n = n_examples · n_b, from n_params parameters."""

    name: str
    state: str
    n_examples: int
    n: int
    n_params: int
    track: list[measure.Checkpoint]
    comparisons: list[measure.Comparison]


@dataclass(frozen=True)
class Results:
    """Everything that the reports tell."""

    options: Options
    version: str
    models: list[ModelResults]
    seconds: float

    @property
    def comparisons(self) -> list[measure.Comparison]:
        """Those of all models."""
        return [c for model in self.models for c in model.comparisons]


def run(options: Options) -> Results:
    """Train both models and measure them, with a progress bar on stderr.

    Parameters
    ----------
    options : Options
        The backend must be installed.

    Returns
    -------
    Results
    """
    start = time.perf_counter()
    backend = importlib.import_module(options.backend)
    models = importlib.import_module(f"traceest_adapters.demo.{options.backend}_models")
    learners = models.learners(data.load(options.seed), options.seed)
    steps = measure.checkpoints(options.steps)
    with _progress(len(learners) * (len(steps) + 1 + N_COMPARISONS)) as tell:
        results = [_measure(learner, steps, options, tell) for learner in learners]
    return Results(options, backend.__version__, results, time.perf_counter() - start)


def _measure(learner: Learner, steps: list[int], options: Options, tell: Any) -> ModelResults:
    K = K_start = learner.kernel()
    track = []
    for before, step in pairwise([0, *steps]):
        tell(f"{learner.name}: training, step {step}")
        learner.train(step - before)
        K = learner.kernel()
        found = measure.estimates(K, K_start, options.probes, options.seed)
        track.append(measure.Checkpoint(step, learner.accuracy(), found))
    tell(f"{learner.name}: exact values")
    measure.warm_up(K_start)
    comparisons = []
    for c in measure.comparisons(K_start, K, options.probes, options.seed):
        comparisons.append(c)
        tell(f"{learner.name}: exact values")
    n, n_params = K.factor.shape
    return ModelResults(learner.name, learner.state, K.factor.n_blocks, n, n_params, track, comparisons)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr; what it yields takes the next step's description."""
    columns = (TextColumn("{task.description:<30}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, done = bar.add_task("", total=total), count()

        def tell(description: str) -> None:
            bar.update(task, completed=next(done), description=description)

        yield tell
