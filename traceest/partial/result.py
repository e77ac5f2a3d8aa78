"""What is told of a partial trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.kernels.statistics import _ratio
from traceest.uncertainty.estimate import Estimate, certain, from_samples
from traceest.uncertainty.moments import degrees_of_freedom, welch_satterthwaite
from traceest.uncertainty.ustatistics import Statistic, jackknife, pair_mean, squared_mean


@dataclass(frozen=True, eq=False, repr=False)
class PartialTrace:
    """What `partial_trace` returns: independent samples of M, and statistics of M from them, computed when asked for.

    Attributes
    ----------
    samples : array, (n_blocks, m, d, d)
        In `unit`: M is the sum over blocks of the means over m. (1, 1, d, d) where M is exact.
    unit : array, 0-d
        What the samples are measured in, so that squares of large and small ones stay in range.
    kept_shape : tuple of int
        Lengths of the kept axes; d is their product, and M's indices run over them row by row.
    symmetric, psd : bool
        What is known of the operator, and so of M.
    sample_rank : int
        The largest rank that one sample can have.
    n_matvecs, n_rmatvecs : int
        Products spent; of a Gram operator, on its factor.
    method : str
        How the samples were made.

    Notes
    -----
    A PartialTrace is a pytree in JAX and in PyTorch.
    """

    samples: Any
    unit: Any
    kept_shape: tuple[int, ...] = ()
    symmetric: bool = False
    psd: bool = False
    sample_rank: int = 0
    n_matvecs: int = 0
    n_rmatvecs: int = 0
    method: str = ""

    @cached_property
    @public
    def matrix(self) -> Estimate:
        """M, (d, d), each entry with its own standard error."""
        xp, m, mean = self._xp, self.samples.shape[1], self._block_means
        value = xp.sum(mean, axis=(0, 1))
        if self._exact:
            return certain(value * self.unit, **self._fields("matrix"))
        return self._array("matrix", value, *self._spread(self.samples - mean, 1 / (m * (m - 1))))

    @cached_property
    @public
    def trace(self) -> Estimate:
        """Tr M = tr K."""
        forms = self._forms * self.unit
        bounds = (0.0 if self.psd else -math.inf, math.inf)
        if self._exact:
            return certain(self._xp.sum(forms), bounds=bounds, **self._fields("trace"))
        return from_samples(forms, bounds=bounds, **self._fields("trace"))

    @cached_property
    @public
    def frobenius_norm(self) -> Estimate:
        """‖M‖, from the unbiased ‖M‖² = Σ_{b≠c} mean ⟨M_{b,i}, M_{c,j}⟩ + Σ_b mean_{i≠j} ⟨M_{b,i}, M_{b,j}⟩."""
        norm = self._norm2.map(lambda f: aa.root(self._xp, f))
        return self._estimate("frobenius_norm", norm, self.unit, bounds=(0.0, math.inf))

    @cached_property
    @public
    def effective_rank(self) -> Estimate:
        """|tr M|² / ‖M‖², the participation ratio: how many modes of the kept axes there are."""
        xp = self._xp
        rank = self._squared_trace.map(lambda t, f: _ratio(xp, t, f), self._norm2)
        return self._estimate("effective_rank", rank, bounds=(1.0 if self.psd else 0.0, float(self.samples.shape[-1])))

    @cached_property
    @public
    def eigenvalues(self) -> Estimate:
        """Those of the mean matrix, (d,), in descending order. Costs n_blocks·m eigenvalue problems of size d.

        The noise of the samples pushes eigenvalues apart, so that the largest are biased upward and the smallest
        downward. Their bias is not taken off, but counted: the squared error is the delete-one jackknife's variance
        and the square of its bias, each the largest of the eigenvalue's own and its two neighbours', since where the
        bias changes its sign it is not small. Nominal 95 % intervals are wide therefore: they covered 98–100 % on
        average and single eigenvalues 93–100 %; but where few directions of the parameters make up most of K, 90–99 %
        and 52–97 %, the least with 3 probes and without blocks (500 runs each). The jackknife alone covered 6–95 %.
        By jvps, eigenvalues beyond the rank that all samples but one can have are not known, and their errors are NaN.

        Raises
        ------
        TypeError
            If the operator is not known to be self-adjoint.
        """
        if not self.symmetric:
            raise TypeError(
                "eigenvalues: M need not be self-adjoint; declare the operator, aslinearoperator(K, symmetric=True), "
                "or take those of .matrix.value."
            )
        xp, m, mean = self._xp, self.samples.shape[1], self._block_means
        total = xp.sum(mean, axis=0, keepdims=True)
        value = _descending(xp, total)[0, 0, :]
        bounds = (0.0 if self.psd else -math.inf, math.inf)
        if self._exact:
            return certain(value * self.unit, bounds=bounds, **self._fields("eigenvalues"))
        left_out = _descending(xp, total + (mean - self.samples) / (m - 1))
        centre = xp.sum(left_out, axis=1, keepdims=True) / m
        stderr, df = self._spread(left_out - centre, (m - 1) / m)
        stderr = _largest_of_neighbours(xp, stderr)
        bias = _largest_of_neighbours(xp, xp.abs((m - 1) * xp.sum(centre[:, 0, :] - value, axis=0)))
        scale = aa.safe_scale(xp, stderr + bias)
        stderr = xp.sqrt((stderr / scale) ** 2 + (bias / scale) ** 2) * scale
        known = xp.arange(value.shape[0], device=aa.device(value)) < self.sample_rank * (m - 1) * self.samples.shape[0]
        return self._array(
            "eigenvalues", value, xp.where(known, stderr, xp.ones_like(stderr) * math.nan), df, bounds=bounds
        )

    @public
    def __repr__(self) -> str:
        d = self.samples.shape[-1]
        cost = f"n_matvecs={self.n_matvecs}, n_rmatvecs={self.n_rmatvecs}"
        return f"PartialTrace({d}×{d}, kept axes of length {self.kept_shape}, method={self.method!r}, {cost})"

    # -- ingredients, in the samples' unit ---------------------------------------------------------
    @property
    def _xp(self) -> Any:
        return aa.namespace(self.samples)

    @property
    def _exact(self) -> bool:
        return self.method == "exact"

    def _fields(self, statistic: str) -> dict[str, Any]:
        return {
            "statistic": f"partial_trace {self.kept_shape} {statistic}",
            "method": self.method,
            "n_matvecs": self.n_matvecs,
            "n_rmatvecs": self.n_rmatvecs,
        }

    @property
    def _block_means(self) -> Any:
        return self._xp.sum(self.samples, axis=1, keepdims=True) / self.samples.shape[1]

    @property
    def _forms(self) -> Any:
        """Tr M_{b,i}, (n_blocks, m)."""
        forms = self._xp.sum(self._xp.linalg.diagonal(self.samples), axis=-1)
        return aa.real(self._xp, forms) if self.symmetric else forms

    @property
    def _norm2(self) -> Statistic:
        xp, (B, m, d, _) = self._xp, self.samples.shape
        X = xp.reshape(self.samples, (B * m, d * d))
        H = xp.reshape(aa.real(xp, aa.conj(xp, X) @ xp.matrix_transpose(X)), (B, m, B, m))
        return Statistic(xp.sum(H), None) if self._exact else pair_mean(xp, H)

    @property
    def _squared_trace(self) -> Statistic:
        xp, forms = self._xp, self._forms
        if self._exact:
            return Statistic(xp.sum(aa.abs2(xp, forms)), None)
        if not aa.is_complex(xp, forms.dtype):
            return squared_mean(xp, forms)
        return squared_mean(xp, xp.real(forms)).map(lambda x, y: x + y, squared_mean(xp, xp.imag(forms)))

    # -- Estimates ---------------------------------------------------------------------------------
    def _estimate(self, statistic: str, s: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        if self._exact:
            return certain(s.value * size, **self._fields(statistic), **fields)
        return jackknife(self._xp, s, size, **self._fields(statistic), **fields)

    def _spread(self, deviations: Any, factor: float) -> tuple[Any, Any]:
        """√(factor · Σ |deviation|²) over axis 1, added up over the blocks of axis 0, and its degrees of freedom."""
        xp = self._xp
        squares = xp.moveaxis(aa.abs2(xp, deviations), 1, -1)
        return welch_satterthwaite(xp, xp.sqrt(xp.sum(squares, axis=-1) * factor), degrees_of_freedom(xp, squares))

    def _array(self, statistic: str, value: Any, stderr: Any, df: Any, **fields: Any) -> Estimate:
        """An Estimate of an array that is in `unit`."""
        return Estimate(value * self.unit, stderr * self.unit, df, None, **self._fields(statistic), **fields)


def _largest_of_neighbours(xp: Any, x: Any) -> Any:
    """max(x_{k−1}, x_k, x_{k+1})."""
    above, below = xp.concat([x[1:], x[-1:]]), xp.concat([x[:1], x[:-1]])
    return xp.maximum(x, xp.maximum(above, below))


def _descending(xp: Any, X: Any) -> Any:
    """Eigenvalues of self-adjoint matrices, the largest first."""
    return xp.flip(aa.eigvalsh(xp, (X + aa.adjoint(xp, X)) / 2), axis=-1)
