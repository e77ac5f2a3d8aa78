"""The Krylov experiment's estimators, which its page calls unbiased, are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import unbiased

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "benchmarks"))
krylov = pytest.importorskip("krylov", reason="the benchmarks are not in an installed package")


@pytest.mark.parametrize("spectrum", ["flat", "poly", "smallstep"])
@pytest.mark.parametrize("t", [2, 3])
@pytest.mark.parametrize("deflated", ["projected", "nystrom"])
def test_leaving_a_chain_out_is_unbiased(spectrum, t, deflated):
    lam = zoo.SPECTRA[spectrum](60)
    f = getattr(krylov, deflated)
    unbiased(lambda seed: krylov.leaving_out(lam, 12, t, np.random.default_rng(seed), f), lam.sum(), seeds=200)


@pytest.mark.parametrize("spectrum", ["flat", "poly"])
def test_krylov_hutchpp_is_unbiased(spectrum):
    lam = zoo.SPECTRA[spectrum](60)
    unbiased(lambda seed: krylov.krylov_hutchpp(lam, 12, 2, np.random.default_rng(seed)), lam.sum(), seeds=200)


def test_a_chain_that_is_not_left_out_is_caught():
    """With the whole space in the sketch nothing is left of the probe, and the residual is lost."""
    lam = zoo.SPECTRA["poly"](60)

    def biased(seed):
        Omega = np.random.default_rng(seed).standard_normal((60, 6))
        Q = krylov.orth(np.concatenate(list(krylov.krylov_space(lam, Omega, 2)), axis=1))
        return float(lam @ np.sum(Q**2, axis=1))

    with pytest.raises(AssertionError, match="off"):
        unbiased(biased, lam.sum(), seeds=200)
