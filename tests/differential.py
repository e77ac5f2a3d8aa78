"""What tests against dense Jacobians share between frameworks: routes to products, sessions, and what is told of them.

A wrong number is a failure. An error that says what is the matter is an answer, and is counted.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

import traceest as te

RTOL = 1e-5
"""Of a product's largest number. What is wrong is wrong by much more, float64's own error is much less."""

CLEAR = (TypeError, ValueError, NotImplementedError, AttributeError)
"""Errors that explain themselves; others come from deep inside."""

WORDS = 5
"""Words of the models' vocabularies."""

MINUTES = float(os.environ.get("TRACEEST_RANDOM_MINUTES", "20"))
"""Of random models in a slow run."""

PLAIN: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
}
"""Settings of hypothesis."""

Tally = Counter[str]


class Framework(NamedTuple):
    """How arrays are made and read, and what else than `CLEAR` errors is an answer."""

    array: Callable[[np.ndarray], Any]
    host: Callable[[Any], np.ndarray]
    least: float  # what is smaller is rounding: of the derivative of a norm by a scale, say
    explains: Callable[[Exception], bool] = lambda error: isinstance(error, CLEAR)


class Sizes(NamedTuple):
    """Of a batch of random models: examples, positions, channels."""

    B: int
    T: int
    C: int


class Dense(NamedTuple):
    """The Jacobian as a matrix (n, P), of B blocks, and how many columns each parameter has."""

    matrix: np.ndarray
    B: int
    sizes: tuple[int, ...]


class Outcome(NamedTuple):
    """Of one route: a number that is right, or an error."""

    route: str
    wrong: str | None = None
    refused: str | None = None


class Route(NamedTuple):
    """A product, what it should be, and its name: the call's, and the number of probes."""

    name: str
    product: Callable[[Any], Any]
    expected: np.ndarray


# -- one kernel ------------------------------------------------------------------------------------------------
def routes(D: Dense, framework: Framework, ks: Iterable[int], statistics: bool = True) -> Iterator[Route]:
    """Every product with so many probes each, and the trace and norm."""
    A, B = D.matrix, D.B
    n, P = A.shape
    for k in ks:
        v, w = (np.random.default_rng(k).standard_normal((rows, k)) for rows in (n, P))
        V, W = framework.array(v), framework.array(w)
        G = np.einsum("bnp,bnk->bkp", A.reshape(B, -1, P), v.reshape(B, -1, k))
        yield Route(f"block_sqnorms, {k}", lambda J, V=V: J.block_sqnorms(V), np.square(G).sum(2))
        yield Route(f"rmatmat, {k}", lambda J, V=V: J.rmatmat(V), A.T @ v)
        yield Route(f"sketch_gram, {k}", lambda J, V=V: J.sketch_gram(V), np.einsum("bip,cjp->bicj", G, G))
        yield Route(f"grouped_gram, {k}", lambda J, V=V: J.grouped_gram(V, groups(D)), _by_group(D, G))
        yield Route(f"block_rmatmat, {k}", lambda J, V=V: J.block_rmatmat(V), G)
        yield Route(f"gram_matmat, {k}", lambda J, V=V: J.gram_matmat(V), A @ (A.T @ v))
        yield Route(f"matmat, {k}", lambda J, W=W: J.matmat(W), A @ w)
    if statistics:
        yield Route("exact", lambda J: te.exact(te.gram(J)).value, np.square(A).sum())
        norm = np.linalg.norm(A @ A.T)
        yield Route("norm", lambda J: te.frobenius_norm(te.gram(J), n_probes=n // B, rng=0).value, norm)


def named(every: Iterable[Route], names: Iterable[str]) -> Iterator[Route]:
    """The routes of these calls."""
    chosen = set(names)
    return (route for route in every if route.name.split(",")[0] in chosen)


def groups(D: Dense) -> tuple[tuple[int, ...], ...]:
    """Every second parameter, and the others."""
    both = tuple(tuple(range(start, len(D.sizes), 2)) for start in (0, 1))
    return tuple(group for group in both if group)


def _by_group(D: Dense, G: np.ndarray) -> np.ndarray:
    parts = np.split(G, np.cumsum(D.sizes)[:-1], axis=2)
    return np.stack([sum(np.einsum("bip,cjp->bicj", parts[i], parts[i]) for i in group) for group in groups(D)])


def compare(make: Callable[[], Any], D: Dense, every: Iterable[Route], framework: Framework) -> list[Outcome]:
    """What every route of ``make()`` gives; errors raised are outcomes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            J = make()
        except Exception as error:
            return [Outcome("make", **{"refused" if isinstance(error, CLEAR) else "wrong": reason(error)})]
        if tuple(J.shape) != D.matrix.shape:
            return [Outcome("make", wrong=f"shape {tuple(J.shape)}, not {D.matrix.shape}")]
        return [_outcome(J, route, framework) for route in every]


def _outcome(J: Any, route: Route, framework: Framework) -> Outcome:
    name, product, expected = route
    try:
        got = framework.host(product(J))
    except Exception as error:
        return Outcome(name, **{"refused" if framework.explains(error) else "wrong": reason(error)})
    if got.shape != np.shape(expected):
        return Outcome(name, wrong=f"shape {got.shape}, not {np.shape(expected)}")
    error, scale = (float(np.max(np.abs(x), initial=0.0)) for x in (got - expected, expected))
    right = error <= RTOL * scale + framework.least
    return Outcome(name, wrong=None if right else f"off by {error:.2g} of {scale:.2g}")


def reason(error: Exception) -> str:
    """The kind of an error and the first words of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"


# -- what is told ----------------------------------------------------------------------------------------------
def tally_of(what: str) -> Any:
    """A fixture that counts what was compared, and what was not and why, and tells it at the end of a module."""

    @pytest.fixture(scope="module", name="tally")
    def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
        found: Tally = Counter()
        yield found
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{what}:", ", ".join(f"{n} {kind}" for kind, n in found.most_common(20)))

    return tally


def counted(tally: Tally, outcome: Outcome, of: str = "", n: int = 1) -> None:
    """Add an outcome, of n models."""
    if outcome.refused is None:
        tally["comparisons"] += n
    else:
        tally[f"refused ({of}{outcome.route.split(',')[0]}: {outcome.refused})"] += 1


def told(wrong: list[str]) -> str:
    """What is wrong, in lines."""
    return "\n".join([f"{len(wrong)} wrong:", *wrong[:200]])


# -- random models ---------------------------------------------------------------------------------------------
class Session:
    """A program as it runs: its actions, each a method of that name, and what was found wrong on the way."""

    def __init__(self, program: Any) -> None:
        self.program, self.asked = program, program.routes
        self.tally: Tally = Counter()
        self.wrong: list[str] = []

    def run(self) -> Any:
        """The session after all actions."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, action in enumerate(self.program.actions):
                getattr(self, action.replace(" ", "_"))(f"{i + 1}. {action}")
        return self

    def note(self, when: str, outcomes: Iterable[Outcome]) -> None:
        """Count what was compared, and keep what is wrong."""
        for outcome in outcomes:
            counted(self.tally, outcome)
            if outcome.wrong is not None:
                self.wrong.append(f"{when}, {outcome.route}: {outcome.wrong}")


def examine(session: Session, tally: Tally) -> None:
    """Run it; no answer may be wrong."""
    session.run()
    tally.update(session.tally, models=1)
    assert not session.wrong, "\n".join([repr(session.program), *session.wrong])


def for_minutes(
    start: Callable[[Any], Session],
    programs: SearchStrategy[Any],
    tally: Tally,
    at_a_time: int,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Examine models that nobody has seen before for `MINUTES`; a mismatch is made small, and its seed is told."""
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        number = int.from_bytes(os.urandom(4), "big")

        @seed(number)
        @settings(max_examples=at_a_time, **PLAIN)
        @given(programs)
        def some(program: Any) -> None:
            examine(start(program), tally)

        try:
            some()
        except AssertionError as error:
            raise AssertionError(f"seed {number}: {error}") from error
        between()


def not_refused(starts: dict[str, Session]) -> None:
    """Raise where a kernel of a part that is alone is refused: a generator that all is refused of proves nothing."""
    for name, session in starts.items():
        session.run()
        assert not any("make" in what for what in session.tally), (name, session.tally)
