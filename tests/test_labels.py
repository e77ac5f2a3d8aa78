"""Each Estimate says what it is of, and estimates of different things are not merged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import traceest as te

J = np.random.default_rng(0).standard_normal((24, 30))
K = te.gram(J, n_blocks=4)
L = te.gram(J[:, ::-1] + 1, n_blocks=4)
A = te.aslinearoperator(J @ J.T, psd=True)
Y = np.random.default_rng(1).standard_normal((24, 2))

CALLS: dict[str, Callable[[int], te.Estimate]] = {
    "trace": lambda s: te.trace(A, rtol=0.5, max_matvecs=12, rng=s),
    "diagonal": lambda s: te.diagonal(A, 8, rng=s),
    "frobenius_norm": lambda s: te.frobenius_norm(K, 3, rng=s),
    "effective_rank": lambda s: te.effective_rank(K, 3, rng=s),
    "alignment": lambda s: te.alignment(K, L, 3, rng=s),
    "centred_alignment": lambda s: te.centred_alignment(K, L, 4, rng=s),
    "target_alignment": lambda s: te.target_alignment(K, Y, 5, rng=s),
    "relative_distance": lambda s: te.relative_distance(K, L, 3, rng=s),
    "inner_product": lambda s: te.inner_product(K, L, 3, rng=s),
    "logdet": lambda s: te.logdet(A, 12, rng=s),
    "schatten_norm": lambda s: te.schatten_norm(A, 1, 12, rng=s),
    "entropy_rank": lambda s: te.entropy_rank(A, 12, rng=s),
    "spectral_norm": lambda s: te.spectral_norm(A, 8, rtol=None, rng=s),
    "trace_of_function": lambda s: te.trace_of_function(A, np.exp, 12, rng=s),
    "trace_of_polynomial": lambda s: te.trace_of_polynomial(A, [0, 1, 2], 4, rng=s),
}
TRACES = {"exact", "fhutch", "hutchinson", "hutchpp", "na_hutchpp", "nystrompp", "rhutch", "xnystrace", "xtrace"}
MORE: dict[str, Callable[[int], te.Estimate]] = {
    "shifted": lambda s: te.logdet(A, 12, shift=1.0, rng=s),
    "p = 3": lambda s: te.schatten_norm(A, 3, 12, rng=s),
    "sine": lambda s: te.trace_of_function(A, np.sin, 12, rng=s),
    "a lambda": lambda s: te.trace_of_function(A, lambda x: x + 1, 12, rng=s),
    "another": lambda s: te.trace_of_function(A, lambda x: x + 2, 12, rng=s),
    "an argument": lambda s: te.trace_of_function(A, partial(np.multiply, 2.0), 12, rng=s),
    "another one": lambda s: te.trace_of_function(A, partial(np.multiply, 3.0), 12, rng=s),
    "another polynomial": lambda s: te.trace_of_polynomial(A, [0, 2, 1], 4, rng=s),
}


def partial_trace(of: str) -> Callable[[int], te.Estimate]:
    operator = te.aslinearoperator(J @ J.T, psd=True)
    operator.state_shape = (6, 4)
    return lambda s: getattr(te.partial_trace(operator, keep=1, n_probes=3, rng=s), of)


PARTS = {of: partial_trace(of) for of in ("matrix", "trace", "frobenius_norm", "effective_rank", "eigenvalues")}
ALL = CALLS | MORE | {f"partial {of}": call for of, call in PARTS.items()}


def test_every_public_call_that_returns_an_estimate_is_asked_here() -> None:
    public = {name: inspect.unwrap(f) for name in te.__all__ if inspect.isfunction(f := getattr(te, name))}
    told = {name for name, f in public.items() if f.__annotations__.get("return") == "Estimate"}
    assert told - {"merge"} == CALLS.keys() | TRACES


@pytest.mark.parametrize("name", sorted(TRACES))
def test_all_ways_to_a_trace_have_its_label(name: str) -> None:
    budget = {} if name == "exact" else {"rng": 0, ("n_probes" if name in ("rhutch", "fhutch") else "n_matvecs"): 12}
    of = K.factor if name in ("rhutch", "fhutch") else A
    assert getattr(te, name)(of, **budget).statistic == "trace"


def test_labels_differ_and_mixtures_are_refused() -> None:
    found = {name: call(0) for name, call in ALL.items()}
    labels = {name: e.statistic for name, e in found.items()}
    assert "" not in labels.values()
    assert len(set(labels.values())) == len(labels), labels
    for a, b in combinations(found, 2):
        with pytest.raises(ValueError, match="of different statistics"):
            te.merge([found[a], ALL[b](1)] if a == "trace" else [found[a], found[b]])


@pytest.mark.parametrize("name", ALL)
def test_two_runs_of_one_call_merge_unless_their_probes_are_the_same(name: str) -> None:
    found, other = (ALL[name](s) for s in (0, 1))
    assert found.statistic == other.statistic
    assert found.merge(other).statistic == found.statistic
    if not found.exact and "partial" not in name:
        with pytest.raises(ValueError, match="same probes"):
            found.merge(ALL[name](0))


def test_summaries_and_trackers_say_it_too() -> None:
    s = te.summary(K, L, n_probes=4, rng=0)
    assert all(e.statistic.endswith(name) for name, e in s.estimates.items())
    found = te.Tracker(rng=0).update(K).estimates
    assert {name: e.statistic for name, e in found.items()} == {name: name for name in found}


def test_a_function_has_the_same_name_in_another_run() -> None:
    from traceest.spectrum.labels import name_of

    def of(c: float, inner: Any = None) -> Callable[[Any], Any]:
        return lambda x: c * (inner(x) if inner else x)

    assert name_of(of(1.0)) == name_of(of(1.0))
    assert len({name_of(f) for f in (of(1.0), of(2.0), of(1.0, np.exp), of(1.0, np.log))}) == 4
