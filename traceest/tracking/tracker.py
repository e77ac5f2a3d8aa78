"""`Tracker`: the same probes at every checkpoint.

The errors of two kernels sketched by the same probes are nearly the same when the kernels are, and their difference
is not: the variance of vᴴK₂v − vᴴK₁v is that of one probe of K₂ − K₁. The sketches of the first and the last
checkpoint are kept, not the models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any

from traceest import _validation as check
from traceest._boundary import public
from traceest.kernels import statistics
from traceest.kernels.norms import largest_rank
from traceest.kernels.sketches import Sketch
from traceest.operators.abilities import can
from traceest.operators.blocks import n_blocks
from traceest.operators.layout import layout
from traceest.probes import Distribution, Probes, of_pairs, require_independent
from traceest.tracking import _export
from traceest.tracking._dynamic import Shifted
from traceest.tracking._sketches import Deflation, Sketches
from traceest.uncertainty.estimate import Estimate, told

FIRST, LAST, NOW = 0, 1, 2


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """What `Tracker.update` returns: Estimates at one checkpoint. The first has no changes, and alignments of 1.

    Attributes
    ----------
    step : float
        As given to `update`, else the number of the checkpoint.
    trace, frobenius_norm, effective_rank : Estimate
    alignment_to_start, alignment_to_previous : Estimate
    distance_to_start, distance_to_previous : Estimate
        Relative: ‖K − K₀‖ / ‖K₀‖.
    trace_change, frobenius_norm_change, effective_rank_change : Estimate
        Since the previous checkpoint, with errors of their own.
    trace_change_from_start, frobenius_norm_change_from_start, effective_rank_change_from_start : Estimate
    """

    step: float
    trace: Estimate
    frobenius_norm: Estimate
    effective_rank: Estimate
    alignment_to_start: Estimate
    alignment_to_previous: Estimate
    distance_to_start: Estimate
    distance_to_previous: Estimate
    trace_change: Estimate
    frobenius_norm_change: Estimate
    effective_rank_change: Estimate
    trace_change_from_start: Estimate
    frobenius_norm_change_from_start: Estimate
    effective_rank_change_from_start: Estimate

    @property
    def estimates(self) -> dict[str, Estimate]:
        """All Estimates by name."""
        return {f.name: vars(self)[f.name] for f in fields(self) if f.name != "step"}

    @public
    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={float(e):.4g}±{float(e.stderr):.2g}" for name, e in self.estimates.items())
        return f"Checkpoint(step={self.step:g}, {shown})"


class Tracker:
    """Follow a kernel along training, checkpoint by checkpoint.

    All checkpoints are seen through the same probes, so that changes from one to the next carry errors of their own,
    many times smaller than those of the values; alignments and distances to the start and to the previous
    checkpoint come from the same sketches. Each checkpoint costs its m products once: what is kept is the sketch,
    (n_blocks · m)² numbers of a Gram operator, (n, m) of any other.

    Parameters
    ----------
    n_probes : int
        m, at least 3: vjps a checkpoint of a Gram operator, products with any other. Where that is the exact
        answer's cost, the answers are exact.
    rng : int, numpy.random.Generator, JAX key or torch.Generator
        Of the common probes; they are drawn once.
    distribution : {"balanced", "rademacher", "gaussian", "sphere"}, optional
        Law of the probes; default: balanced where positions of the state are known, else Rademacher.
    n_deflate : int
        q > 0 makes the values those of a one-sided Hutch++ whose basis comes for nothing: the q leading directions of
        the previous checkpoint, one step of subspace iteration further at each. For kernels without blocks that have
        products K V; of a Gram operator q vjps and jvps more a checkpoint (the first time twice).
    n_fresh : int
        m′ > 0 makes the trace's values those of dynamic trace estimation: m′ fresh probes at each checkpoint, through
        the previous kernel too, so that the error averages out along the run instead of staying. 2m′ products more a
        checkpoint; the previous kernel is kept, and has to stay valid.

    Raises
    ------
    ValueError
        If a number is too small, or probes are orthogonal.

    References
    ----------
    Dharangutte and Musco (2021), Dynamic trace estimation (arXiv 2110.13752), for `n_fresh`; the one-sided deflated
    form and the error bars are this library's own.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> rng = np.random.default_rng(0)
    >>> J, drift = rng.standard_normal((80, 30)), rng.standard_normal((80, 30))
    >>> tracker = te.Tracker(n_probes=4, rng=0)
    >>> for t in range(5):
    ...     now = tracker.update(te.gram(J + 0.01 * t * drift, n_blocks=8), step=t)
    >>> bool(now.trace_change.stderr < 0.2 * now.trace.stderr)
    True
    >>> tracker.table()["step"]
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """

    def __init__(
        self,
        n_probes: int = 4,
        *,
        rng: Any = 0,
        distribution: Distribution | None = None,
        n_deflate: int = 0,
        n_fresh: int = 0,
    ) -> None:
        self.n_probes = check.budget(n_probes, None, 3, "n_probes", "Tracker")
        for name, n, least in (("n_deflate", n_deflate, 0), ("n_fresh", n_fresh, 0)):
            check.budget(n, None, least, name, "Tracker")
        if n_fresh == 1:
            raise ValueError("Tracker: n_fresh = 1 tells no error; give at least 2, or 0 for none.")
        if distribution is not None:
            require_independent(distribution, "Tracker")
        self.distribution, self.n_deflate, self.n_fresh, self._rng = distribution, n_deflate, n_fresh, rng
        self._sketches: Sketches | None = None
        self._marks: tuple[str, ...] = ()
        self._deflation: Deflation | None = None
        self._shifted: Shifted | None = None
        self.checkpoints: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __getitem__(self, i: int) -> Checkpoint:
        return self.checkpoints[i]

    @public
    def update(self, K: Any, step: float | None = None) -> Checkpoint:
        """Look at the kernel as it is now.

        Parameters
        ----------
        K : operator, (n, n)
            On the same states as all before; a model's kernel is made anew for each checkpoint, `ntk(fn, params, x)`.
        step : float, optional
            Where on the horizontal axis; default: the number of the checkpoint.

        Returns
        -------
        Checkpoint

        Raises
        ------
        ValueError
            If K has other states than before, or blocks where `n_deflate` is asked for.
        TypeError
            If a product that is needed is missing.
        """
        K = check.square(K, "Tracker")
        if self._sketches is None:
            self._sketches = self._start(K)
        sketches = self._sketches
        sketches.check(K)
        values, own = self._deflation.sketch(K, sketches.V) if self._deflation is not None else (None, None)
        s = sketches.follow(K, own)
        trace = None if self._shifted is None else self._shifted.follow(K)
        step = float(len(self.checkpoints) if step is None else step)
        found = _checkpoint(step, K, s, values, trace)
        of: dict[str, Any] = {name: told(e, name, K, self._marks) for name, e in found.estimates.items()}
        self.checkpoints.append(replace(found, **of))
        return self.checkpoints[-1]

    @public
    def table(self) -> dict[str, list[float]]:
        """Columns by name: step, and every statistic with ``_stderr`` and its 95 % interval, ``_low`` and ``_high``."""
        return _export.columns(self.checkpoints)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write `table` as comma-separated values, in one step."""
        _export.to_csv(self.checkpoints, path)

    @public
    def plot(self, axes: Any = None) -> Any:
        """Draw trace, norm, effective rank and alignments with their 95 % intervals; needs matplotlib.

        Parameters
        ----------
        axes : sequence of four matplotlib axes, optional
            A figure is made if absent.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return _export.plot(self.checkpoints, axes)

    def _start(self, K: Any) -> Sketches:
        """Draw the probes that all checkpoints share, once K is known to fit what was asked for."""
        factor, blocks = K.factor, n_blocks(K.inner)
        one_sided = factor is not None and can(factor, "rmatmat")
        rows = layout(K, blocks if one_sided else 1)
        stream = Probes(
            K.shape[0],
            K,
            rng=self._rng,
            distribution=self.distribution or of_pairs(rows),
            n_blocks=blocks if one_sided else 1,
            layout=rows,
        )
        if self.n_deflate:
            check.require_side(K, "matmat", "Tracker")
            if one_sided and blocks > 1:
                raise ValueError(
                    f"Tracker: n_deflate is for kernels of one block, this one has {blocks}, whose cross-example noise "
                    "is gone already; drop n_deflate, or make the kernel with batch_axis=None."
                )
        self._marks = stream.marks
        sketches = Sketches(K, stream, self.n_probes)
        if not sketches.exact:  # which nothing can better
            self._deflation = Deflation(stream, self.n_deflate) if self.n_deflate else None
            self._shifted = Shifted(stream, self.n_fresh) if self.n_fresh else None
        return sketches


def _checkpoint(step: float, K: Any, s: Sketch, values: Sketch | None, trace: Estimate | None) -> Checkpoint:
    """All statistics of the sketch of first, last and present kernel; values from a better one where there is one."""
    psd, v, a = K.psd, values or s, 0 if values is not None else NOW
    changes = {
        f"{name}_change{suffix}": change(s, NOW, earlier)
        for suffix, earlier in (("", LAST), ("_from_start", FIRST))
        for name, change in _CHANGES.items()
    }
    return Checkpoint(
        step,
        statistics.trace(v, a) if trace is None else trace,
        statistics.frobenius_norm(v, a),
        statistics.effective_rank(v, a, largest_rank(K)),
        alignment_to_start=statistics.alignment(s, NOW, FIRST, psd),
        alignment_to_previous=statistics.alignment(s, NOW, LAST, psd),
        distance_to_start=statistics.relative_distance(s, NOW, FIRST),
        distance_to_previous=statistics.relative_distance(s, NOW, LAST),
        **changes,
    )


_CHANGES = {
    "trace": statistics.trace_change,
    "frobenius_norm": statistics.frobenius_norm_change,
    "effective_rank": statistics.effective_rank_change,
}
