"""Hutchinson, XNysTrace and XTrace of the same probes: the best of them, and the products that improve it most."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest.estimators.sampler import Sampler, Target
from traceest.estimators.xtrace import XNysTrace
from traceest.operators.blocks import block_sqnorms
from traceest.operators.layout import layout
from traceest.operators.products import completed, form, orth
from traceest.probes import Distribution, Probes, named, random_source
from traceest.uncertainty import leave_out
from traceest.uncertainty.estimate import Estimate, _to_host, from_samples, trace_bounds

PILOT = 4
"""Products spent to predict XTrace's error."""

GAIN = 0.8
"""XTrace is taken where its predicted error is below this part of what as many products spent on probes would leave."""

SETTLED = 50
"""Below this many probes XNysTrace goes on unasked: its error may fall by orders with the next few; a pilot costs."""


PLAIN = 12
"""Vjps predicted per product made (ten, if none yet), up to which vjps are taken to be the cheaper way."""


SLACK = 1.5
"""Once begun, XTrace continues while its standard error is within this factor of the smallest."""


class Exchangeable(XNysTrace):
    """Probes Ω, products Y = AΩ and, where it pays, the products AQ with Q = orth(Y): nothing is dropped.

    * The forms ωᴴAω are Hutchinson's samples: best where the spectrum is flat.
    * Ω and Y give XNysTrace, where A is positive semidefinite: best where the eigenvalues go on falling.
    * With AQ, as many products again, they give XTrace: best above a floor, which more probes cannot sketch away, and
      where A is not known to be positive semidefinite. A pilot predicts whether it pays: the spread of a few forms
      uᴴAu with u = (I − QQᴴ)g is that of the samples XTrace would have. Once AQ is there, Ag = Au + AQQᴴg, and the
      pilot's g are probes like the others.

    The estimate with the smallest standard error is the answer.

    With `one_sided`, of K = JJᴴ, it begins and may go on with samples ‖Jᴴω‖² by vjps alone, ω signs, each at most half
    of what a product costs: as long as no more than `PLAIN` of them for each product made are predicted to be enough,
    and no more than twice the products. So a flat spectrum is known before anything is sketched; a wrong turn costs
    a few times what was spent before.
    """

    KEPT = ("products", "probes", "basis", "images", "pilots", "pilots_kept", "pilots_products", "plain")
    FORMS = ("plain",)
    COUNTS = (*Sampler.COUNTS, "asked", "drawn_for_vjps", "by_vjps")
    basis: list[Any]
    images: list[Any]
    pilots: list[Any]
    pilots_kept: list[Any]
    pilots_products: list[Any]
    plain: list[Any]
    hutchinson: Estimate

    asking = PILOT

    def __init__(
        self,
        A: Any,
        rng: Any,
        distribution: Distribution | None,
        chunk: int,
        methods: tuple[str, ...],
        one_sided: bool = False,
    ) -> None:
        self.one_sided = self.lean = one_sided
        law, source, n = named(distribution or "sphere").alone, random_source(rng), A.shape[0]
        super().__init__(A, Probes(n, A, rng=source, distribution=law.name), chunk)
        self.for_vjps = self.stream
        if one_sided and distribution is None:  # signs, which have less variance than what XNysTrace needs
            self.for_vjps = Probes(n, A, rng=source.child(), distribution=None, layout=layout(A, 1))
        self.methods = methods
        self.bounds = (0.0, math.inf) if "xnystrace" in methods else trace_bounds(A)
        self.patience = A.shape[0] // 8
        self.looks: list[tuple[int, float]] = []
        self.best, self.asked = "", 0
        self.by_vjps = False  # whether the first probe was multiplied by vjps alone
        self.deep = methods == ("xtrace",)

    @property
    def n_forms(self) -> int:
        """Hutchinson's samples: those probes', and those of vjps alone."""
        return self.n_probes + sum(x.shape[1] for x in self.plain)

    @property
    def n_samples(self) -> int:
        """Samples of the way by which it continues."""
        return self.n_forms if self.lean else self.n_probes

    @property
    def sketched(self) -> int:
        """Columns of Q."""
        return sum(Q.shape[1] for Q in self.basis)

    @property
    def cost(self) -> int:
        """Products that one more sample takes: with its column of AQ, where that has been found to pay, two."""
        return 2 if self.deep and not self.lean else 1

    @property
    def rate(self) -> float:
        """As seen between the last two looks, hopeful before."""
        if len(self.looks) < 2:
            return 2.0
        (k, before), (m, now) = self.looks[-2:]
        return min(8.0, max(0.5, math.log(before / now) / math.log(m / k))) if now > 0 and m > k else 8.0

    def state(self) -> dict[str, Any]:
        """Everything the sampler knows, by name."""
        drawn = 0 if self.for_vjps is self.stream else self.for_vjps.drawn
        looks = np.asarray(self.looks, dtype=np.float64).reshape(-1, 2)
        own = {"asked": self.asked, "looks": looks, "drawn_for_vjps": drawn, "by_vjps": int(self.by_vjps)}
        return super().state() | own

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        super().restore(state)
        self.for_vjps.skip(state["drawn_for_vjps"])
        self.asked, self.by_vjps = state["asked"], bool(state["by_vjps"])
        self.looks = [(int(k), float(stderr)) for k, stderr in _to_host(state["looks"])]
        self.lean = self.one_sided and not self.n_probes

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; those that are empty are missing."""
        return (*super().arrays, "looks")

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the state's array of that name may have this shape and dtype."""
        if name == "looks":
            return len(shape) == 2 and shape[1] == 2 and dtype == np.float64
        return super().fits(name, shape, dtype)

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with these numbers of columns, and the state's counts, can come from one run."""
        k, pilots, sketched = columns["probes"], columns["pilots"], columns["basis"]
        groups = (
            (k, columns["products"]),
            (sketched, columns["images"]),
            (pilots, columns["pilots_kept"]),
            (pilots, columns["pilots_products"]),
        )
        drawn = k + pilots, columns["plain"]
        if self.for_vjps is self.stream:
            drawn = k + pilots + columns["plain"], 0
        whole = k + columns["plain"] > 0 and sketched <= k and "looks" in state
        return whole and all(a == b for a, b in groups) and drawn == (state["drawn"], state["drawn_for_vjps"])

    def ahead(self, e: Estimate, target: Target) -> float:
        """Predicted number of further products; it continues by vjps where few enough of them suffice."""
        k, m = self.n_probes, self.n_forms
        by_products = (target.samples(e, k, self.rate) - k) * (2 if self.deep else 1)
        if not self.one_sided:
            return by_products
        by_vjps = target.samples(self.hutchinson, m, 0.5) - m
        self.lean = by_vjps <= PLAIN * max(k, 10) and (not k or by_vjps <= 2 * by_products)
        return by_vjps if self.lean or not k else by_products

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        if self.lean:
            for V in self.for_vjps.chunks(k, self.chunk):
                self.plain.append(self._squares(V))
                self.by_vjps = self.witness is None or self.by_vjps
                self.remember(V, self.plain[-1])
            return
        super().grow(k)
        if self.deep:
            self.deflate()

    def seen(self, V: Any) -> Any:
        """What `remember` is given for the probe V."""
        return self._squares(V) if self.by_vjps else super().seen(V)

    def _squares(self, V: Any) -> Any:
        """‖Jᴴv‖², (1, k)."""
        before = self.meter.n_rmatvecs
        forms = block_sqnorms(self.meter.op.factor, V)
        if self.caller is not None:
            check.finite(forms, "rmatmat", before, self.caller)
        return forms

    def worth_deflating(self, ahead: float, left: int) -> int:
        """Products that AQ takes, where it promises more than as many probes would; else 0. A pilot costs `PILOT`."""
        k = self.n_probes
        if self.lean:
            return 0
        cost = k - self.sketched + sum(G.shape[1] for G in self.pilots) + PILOT
        early = k < 1.1 * self.asked or ("xnystrace" in self.methods and k < SETTLED)
        if "xtrace" not in self.methods or k == self.sketched or early or cost + PILOT > min(ahead, left):
            return 0
        self.asked = k
        # The error of XNysTrace falls ever faster where the spectrum decays: the rate seen so far is rather too low.
        rate = min(6.0, self.rate + 2) if self.best == "xnystrace" else 0.5
        as_probes = self.looks[-1][1] * ((k + cost) / k) ** -rate
        return cost if self._pilot() / k**0.5 < GAIN * as_probes else 0

    def _pilot(self) -> float:
        """Standard deviation of uᴴAu, u being what Q leaves of a probe, rescaled to its expected length."""
        xp, Q = self.xp, orth(self.joined("products"), self.joined("probes"))[0]
        G = self.stream.take(PILOT)
        kept = Q @ (aa.adjoint(xp, Q) @ G)
        U = G - kept
        AU = self.multiply(U)
        for name, x in (("pilots", G), ("pilots_kept", kept), ("pilots_products", AU)):
            vars(self)[name].append(x)
        length2 = xp.sum(aa.abs2(xp, U), axis=0)
        should = (U.shape[0] - Q.shape[1]) if self.normalise else length2
        return float(from_samples((aa.vdot(xp, U, AU) * (should / length2))[None, :]).stderr) * PILOT**0.5

    def deflate(self) -> None:
        """Extend Q to a basis of all products, with AQ, and turn the pilots into probes."""
        self._extend()
        if self.pilots:
            Q, Z = self.joined("basis"), self.joined("images")
            kept = Z @ (aa.adjoint(self.xp, Q) @ self.joined("pilots_kept"))
            self.products.append(self.joined("pilots_products") + kept)
            self.probes.append(self.joined("pilots"))
            self.pilots, self.pilots_kept, self.pilots_products = [], [], []
            self._extend()

    def _extend(self) -> None:
        """Add the columns of Q that the newest products need, with AQ."""
        Y, Omega = (self.joined(name)[:, self.sketched :] for name in ("products", "probes"))
        if self.basis:
            Q = _backends.compiled(completed, (), (self.joined("basis"), Y, Omega), Y)
        else:
            Q = orth(Y, Omega)[0]
        self.basis.append(Q)
        self.images.append(self.multiply(Q))

    def estimate(self) -> Estimate:
        """The answer so far: of the estimates that the products allow, the one with the smallest standard error."""
        k = self.n_probes
        Omega, Y = (self.joined("probes"), self.joined("products")) if k else (None, None)
        found = [self._hutchinson(Omega, Y)] if "hutchinson" in self.methods or k < 3 else []
        if found:
            self.hutchinson = found[0]
        if "xnystrace" in self.methods and k >= 3:
            found.append(super().estimate())
        if self.sketched == k >= 3:
            found.append(self._xtrace(Omega, Y))
        e = min(found, key=lambda e: float(e.stderr))
        # It was predicted to pay and keeps improving: chance alone should not stop it.
        pays = found[-1].method == "xtrace" and float(found[-1].stderr) <= SLACK * float(e.stderr)
        self.deep = pays or self.methods == ("xtrace",)
        self.best = e.method
        if not self.lean:
            self.looks.append((k, float(e.stderr)))
        return e

    def _hutchinson(self, Omega: Any, Y: Any) -> Estimate:
        if Omega is None:
            return from_samples(self.joined("plain"), method="rhutch", bounds=self.bounds, **self.meter.spent)
        forms = form(self.xp, self.meter.op, Omega, Y)
        forms = aa.real(self.xp, forms) if self.bounds[0] == 0 else forms  # xnystrace= declares A Hermitian
        forms = aa.concat_columns(self.xp, [forms[None, :], *self.plain])
        return from_samples(forms, method="hutchinson", bounds=self.bounds, **self.meter.spent)

    def _xtrace(self, Omega: Any, Y: Any) -> Estimate:
        static = self.normalise, bool(self.meter.op.symmetric)
        found: leave_out.Mean = _backends.compiled(
            _xtrace, static, (Omega, Y, self.joined("basis"), self.joined("images")), Y
        )
        return Estimate(*found, None, method="xtrace", bounds=self.bounds, **self.meter.spent)


def _xtrace(normalise: bool, symmetric: bool, arrays: tuple[Any, ...]) -> leave_out.Mean:
    """XTrace's answer from Ω, Y, a basis Q of Y that has grown with it, and AQ."""
    Omega, Y, Q, Z = arrays
    xp = aa.namespace(Y)
    scale = aa.safe_scale(xp, Y)
    Z, Qh = Z / scale, aa.adjoint(xp, Q)
    R = xp.triu(Qh @ aa.touched(xp, Y, Omega, scale))
    T = None if symmetric else aa.adjoint(xp, Z) @ Omega
    return leave_out.xtrace(normalise, (Omega, Q, R, R, Qh @ Z, T, aa.largest(xp, Y), None))
