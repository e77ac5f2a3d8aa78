"""Every statistic of one or several kernels from the same products."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from traceest._boundary import public
from traceest.kernels import statistics
from traceest.kernels.adaptive import marks_of
from traceest.kernels.alignments import targets
from traceest.kernels.grouping import Grouping, groups_of
from traceest.kernels.norms import largest_rank
from traceest.kernels.sketches import Method, Request, Sketch, fused, kernels_of_one_state, sketch
from traceest.operators.gram import shorter
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate, told


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` returns: Estimates, of k kernels with a leading axis of k (none for a single one).

    Attributes
    ----------
    trace, frobenius_norm, effective_rank : Estimate, () or (k,)
    alignment : Estimate, (k, k), or None
        Of several kernels with each other.
    relative_distance : Estimate, (k, k), or None
        Entry (a, b) is ‖K_a − K_b‖ / ‖K_b‖.
    target_alignment : Estimate, () or (k,), or None
        Where targets were given.
    example_traces : Estimate, (B,) or (k, B), or None
        The trace of each example's own block, where examples are independent.
    groups : dict of Summary
        The same of the parts of the kernels that belong to groups of parameters, K = Σ K_group, by label.
    alignment_with_whole : Estimate, () or (k,), or None
        Of a group: its alignment with the kernel of all parameters.
    names : tuple of str
        Of the kernels.

    Notes
    -----
    A Summary is a pytree in JAX and in PyTorch.
    """

    trace: Estimate
    frobenius_norm: Estimate
    effective_rank: Estimate
    alignment: Estimate | None = None
    relative_distance: Estimate | None = None
    target_alignment: Estimate | None = None
    example_traces: Estimate | None = None
    alignment_with_whole: Estimate | None = None
    groups: dict[str, Summary] = field(default_factory=OrderedDict)
    names: tuple[str, ...] = ()

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Those that are there, by name."""
        return {f.name: e for f in fields(self) if isinstance(e := vars(self)[f.name], Estimate)}

    @property
    def n_matvecs(self) -> int:
        """Products spent with the operators, in all."""
        return self.trace.n_matvecs

    @property
    def n_rmatvecs(self) -> int:
        """Products spent with the adjoints, in all."""
        return self.trace.n_rmatvecs

    @public
    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for `json`."""
        return {
            "names": list(self.names),
            **{name: e.to_dict() for name, e in self.estimates.items()},
            "groups": {label: part.to_dict() for label, part in self.groups.items()},
        }

    @public
    def __repr__(self) -> str:
        from traceest.kernels._table import table

        return table(self)


ESTIMATES = tuple(f.name for f in fields(Summary) if f.name not in ("groups", "names"))
"""Fields of `Summary` that are Estimates, where they are there."""


@public
def summary(
    *kernels: Any,
    n_probes: int | None = None,
    n_matvecs: int | None = None,
    target: Any = None,
    centred: bool = False,
    groups: Grouping = None,
    names: Sequence[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Summary:
    """Trace, Frobenius norm, effective rank and alignments of one or several kernels, from the same products.

    Each product is made once and serves all statistics: of K = JJᴴ with B independent examples, m vjps a kernel give
    everything, each example's own trace and each group's part of the kernel included.

    Parameters
    ----------
    *kernels : operators, (n, n)
        On the same states: checkpoints, layers, models. As in `frobenius_norm`.
    n_probes, n_matvecs : int
        The budget for each kernel, as in `frobenius_norm`; of `n_probes` one goes to each target, and one to centring.
    target : array, (n,), (n, t), or of n entries, optional
        Adds `target_alignment`.
    centred : bool
        Of HKH, H = I − 11ᵀ/n, in place of K: the alignment is then CKA.
    groups : True, int, str, sequence of str, mapping or callable, optional
        Adds the same statistics of each group of parameters, whose names are dotted paths: True for every array of
        them; an int d for those that share the first d parts of their path ("encoder.0" for d = 2); names or globs of
        modules, each of which that is there is a group ("layers.*", or ["embed", "layers.*.attn"]); a mapping from
        labels to names, globs ("*.attn.*") or predicates of name and array; or a function from names to labels (or
        None). Of a kernel JJᴴ a group's part is that of its columns of J. Of a matrix of the parameters themselves, JᴴJ
        or a Hessian, it is the group's block on the diagonal, from the same products (without a low-rank part).
        Memory: one Gram array more a group.
    names : sequence of str, optional
        Of the kernels, for printing.
    method, rng, distribution, probes
        As in `frobenius_norm`.

    Returns
    -------
    Summary
        Of Estimates; its repr is a table.

    Raises
    ------
    ValueError, TypeError
        As `frobenius_norm`, `target_alignment`; if there is no kernel, or `groups` do not fit the parameters.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> rng = np.random.default_rng(0)
    >>> J, noise = rng.standard_normal((80, 30)), rng.standard_normal((80, 30))
    >>> s = te.summary(te.gram(J, n_blocks=8), te.gram(J + noise, n_blocks=8), n_probes=4, rng=0)
    >>> s.trace.value.shape, s.alignment.value.shape, s.n_rmatvecs
    ((2,), (2, 2), 8)
    >>> layers = te.gram(te.DenseOperator(J, n_blocks=8, parameters={"w": 24, "b": 6}))
    >>> list(te.summary(layers, n_probes=4, groups=True, rng=0).groups)
    ['w', 'b']
    """
    if not kernels:
        raise TypeError("summary: give at least one kernel.")
    Ks = kernels_of_one_state(kernels, "summary")
    if names is not None and len(names) != len(Ks):
        raise ValueError(f"summary: {len(Ks)} kernels have {len(names)} names; give one each.")
    if groups and len(Ks) == 1 and target is None and not centred:
        Ks = [shorter(Ks[0])]  # of JᴴJ, by the parameters of J
    labels = groups_of(Ks, groups, "summary")
    Y = None if target is None else targets(target, Ks[0], "summary")
    request = Request(
        "summary",
        n_probes,
        n_matvecs,
        method=method,
        rng=rng,
        distribution=distribution,
        probes=probes,
        centred=centred,
        targets=Y,
        groups=tuple(labels.values()) or None,
    ).checked()
    if names is None:
        names = [f"K{a + 1}" for a in range(len(Ks))] if len(Ks) > 1 else ["K"]
    psd, ranks = all(K.psd for K in Ks), tuple(largest_rank(K) for K in Ks)
    marks = marks_of(request)
    return _told(fused(_summary, sketch(Ks, request), psd, ranks, tuple(names), tuple(labels)), Ks[0], marks, centred)


def _told(s: Summary, K: Any, marks: tuple[str, ...], centred: bool) -> Summary:
    """With what each Estimate is of."""
    of = "centred_" if centred else ""
    estimates: dict[str, Any] = {name: told(e, of + name, K, marks) for name, e in s.estimates.items()}
    groups = OrderedDict((label, _told(part, K, marks, centred)) for label, part in s.groups.items())
    return replace(s, **estimates, groups=groups)


def _summary(
    s: Sketch, psd: bool, ranks: tuple[float, ...], names: tuple[str, ...], labels: tuple[str, ...], part: bool = False
) -> Summary:
    """All statistics of a sketch of len(ranks) kernels; of a part, the whole ones come behind them."""
    k, xp = len(ranks), s.xp
    parts = (_summary(group, psd, ranks, names, (), part=True) for group in s.groups)
    groups = OrderedDict(zip(labels, parts, strict=True))  # whose order survives in a pytree
    every, pairs = range(k), [(a, b) for a in range(k) for b in range(k)]

    def each(of: Any) -> Estimate:
        found = [of(a) for a in every]
        return found[0] if k == 1 else _stacked(xp, found, (k,))

    def of_pairs(of: Any) -> Estimate:
        return _stacked(xp, [of(a, b) for a, b in pairs], (k, k))

    example_traces = None if s.example_traces(0) is None else each(s.example_traces)
    return Summary(
        each(lambda a: statistics.trace(s, a, psd)),
        each(lambda a: statistics.frobenius_norm(s, a)),
        each(lambda a: statistics.effective_rank(s, a, ranks[a], psd)),
        alignment=of_pairs(lambda a, b: statistics.alignment(s, a, b, psd)) if k > 1 else None,
        relative_distance=of_pairs(lambda a, b: statistics.relative_distance(s, a, b)) if k > 1 else None,
        target_alignment=each(lambda a: statistics.target_alignment(s, a, psd)) if s.targets else None,
        example_traces=example_traces,
        alignment_with_whole=each(lambda a: statistics.alignment(s, a, k + a, psd)) if part else None,
        groups=groups,
        names=names,
    )


def _stacked(xp: Any, estimates: list[Estimate], shape: tuple[int, ...]) -> Estimate:
    """Estimates of one kind as one of batched values."""
    first = estimates[0]

    def joined(name: str) -> Any:
        values = [vars(e)[name] for e in estimates]
        if name == "reach":  # of some, as an alignment of a kernel with itself, a single block may tell more
            known = next(x for x in values if x is not None)
            values = [xp.zeros_like(known) + e.value if e.reach is None else e.reach for e in estimates]
        return xp.reshape(xp.stack(values), (*shape, *values[0].shape))

    return Estimate(
        joined("value"),
        joined("stderr"),
        joined("df"),
        None,
        n_matvecs=first.n_matvecs,
        n_rmatvecs=first.n_rmatvecs,
        method=first.method,
        bounds=first.bounds,
        statistic=first.statistic,
        reach=None if all(e.reach is None for e in estimates) else joined("reach"),
    )
