"""What a statistic of kernels is asked for: budget, method, probes, and what belongs to the kernels beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.adaptive import Stop
from traceest.operators.base import check_compatible
from traceest.probes import Distribution, require_independent

Method = Literal["auto", "one-sided", "two-sided", "hutchinson", "exact"]
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Request:
    """The arguments that all statistics of kernels share.

    `n_probes` counts one-sided products, `n_matvecs` products with K; `stop` takes as many as a tolerance asks for.
    `centred` asks for HKH, H = I − 11ᵀ/n, in place of K, `targets` (n, t) for ⟨K, YYᴴ⟩ too, and `groups` for the parts
    of K that belong to runs of its factor's columns.
    """

    caller: str
    n_probes: int | None = None
    n_matvecs: int | None = None
    stop: Stop | None = None
    method: Method = "auto"
    rng: Any = None
    distribution: Distribution | None = None
    probes: Any = None
    centred: bool = False
    targets: Any = None
    groups: Groups | None = None

    def checked(self) -> Request:
        """The same, with what can be wrong without a kernel found not to be.

        Raises
        ------
        ValueError, TypeError
            For unknown methods, two budgets, a budget or probes beside a tolerance, or orthogonal probes.
        """
        if self.method not in get_args(Method):
            raise ValueError(
                f"{self.caller}: method must be one of {', '.join(get_args(Method))}, got {self.method!r}."
            )
        if self.n_probes is not None and self.n_matvecs is not None:
            raise TypeError(f"{self.caller}: give n_probes or n_matvecs, not both.")
        if self.stop is not None and self.limit is not None:
            given = "n_matvecs" if self.n_probes is None else "n_probes"
            raise TypeError(
                f"{self.caller}: {given}={self.limit} is a fixed budget, and a tolerance takes as many products as it "
                f"asks for; give one of the two, or max_matvecs={self.limit} for the most to spend (and method="
                '"one-sided" or "two-sided" for the side).'
            )
        if self.stop is not None and self.probes is not None:
            raise TypeError(f"{self.caller}: a tolerance takes as many probes as it asks for; give rng= for probes=.")
        if self.distribution is not None:
            require_independent(self.distribution, self.caller)
        return self

    @property
    def limit(self) -> int | None:
        """The budget, of whichever kind."""
        return self.n_probes if self.n_matvecs is None else self.n_matvecs

    @property
    def n_extra(self) -> int:
        """Columns that are not drawn: the ones that centring takes, and the targets."""
        return int(self.centred) + (0 if self.targets is None else int(self.targets.shape[1]))

    def n_drawn(self, minimum: int) -> int:
        """Probes to draw: the budget less what goes to the columns that are not drawn."""
        if self.probes is not None and self.limit is None:
            return check.budget(None, self.probes, minimum, "n_probes", self.caller)
        name = "n_probes" if self.n_matvecs is None else "n_matvecs"
        m = check.budget(self.limit, None, minimum + self.n_extra, name, self.caller) - self.n_extra
        return check.budget(m, self.probes, minimum, name, self.caller)

    def extra_columns(self, xp: Any, K: Any) -> Any:
        """The ones and the targets, (n, n_extra), or None; centred targets where K is to be centred."""
        n, columns = K.shape[0], []
        if self.centred:
            columns.append(xp.ones((n, 1), dtype=K.dtype, device=aa.device(K)))
        if self.targets is not None:
            Y = self.targets
            columns.append(Y - xp.sum(Y, axis=0, keepdims=True) / n if self.centred else Y)
        return aa.concat_columns(xp, columns) if columns else None

    @cached_property
    def target_norm(self) -> Any:
        """‖YYᴴ‖ = ‖YᴴY‖, of the centred targets where K is to be centred; None without targets."""
        if self.targets is None:
            return None
        Y, xp = self.targets, aa.namespace(self.targets)
        Y = Y - xp.sum(Y, axis=0, keepdims=True) / Y.shape[0] if self.centred else Y
        return xp.sqrt(xp.sum(aa.abs2(xp, aa.adjoint(xp, Y) @ Y)))


def kernels_of_one_state(kernels: Any, caller: str) -> list[Any]:
    """The kernels as square operators of one shape, dtype and device.

    Raises
    ------
    ValueError, TypeError
        If they are not.
    """
    Ks = [check.square(K, caller) for K in kernels]
    for K in Ks[1:]:
        if K.shape != Ks[0].shape:
            raise ValueError(
                f"{caller}: the kernels have shapes {Ks[0].shape} and {K.shape}; they must share their states."
            )
        check_compatible(Ks[0], K, caller)
    return Ks
