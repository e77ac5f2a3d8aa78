"""Hidden states by the names of modules, fields by theirs, and inputs by keyword."""

from __future__ import annotations

import sys
from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_torch_adapter import dense, x
from torch import nn

import traceest as te
from traceest_adapters.torch import jacobian, ntk

F64 = {"dtype": torch.float64}
OUTPUTS = sys.modules["traceest_adapters.torch.output_selection"]
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(4, 4, **F64), nn.LayerNorm(4, **F64)

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.mix(h)
        return self.norm(h + torch.tanh(z)), z


class Net(nn.Module):
    """Blocks that return tuples, one cell called three times, an output overwritten by what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.cell, self.early = nn.Linear(4, 4, **F64), nn.Linear(4, 4, **F64)
        self.head, self.idle = nn.Linear(4, 2, **F64), nn.Linear(4, 2, **F64)

    def forward(self, h: torch.Tensor) -> dict[str, Any]:
        h = self.early(h).mul_(2)
        for block in self.blocks:
            h, _ = block(h)
        for _ in range(3):
            h = torch.tanh(self.cell(h))
        return {"head": torch.sin(self.head(h)), "hidden": h, "nothing": None, "pair": (h, h.argmax(-1))}


NET = Net()
X = x(5, 4)


def by_hand(part: Callable[[Net, torch.Tensor], Any]) -> Any:
    """The Jacobian of a part of `NET` that is written out."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = NET

        def forward(self, h: torch.Tensor) -> Any:
            return part(self.net, h)

    return dense(jacobian(Part(), X))


def blocks(net: Net, h: torch.Tensor, n: int) -> Any:
    out: Any = (2 * net.early(h),)
    for block in net.blocks[:n]:
        out = block(out[0])
    return out


def cells(net: Net, h: torch.Tensor) -> list[torch.Tensor]:
    h, zs = blocks(net, h, 2)[0], []
    for _ in range(3):
        zs.append(net.cell(h))
        h = torch.tanh(zs[-1])
    return zs


HIDDEN: dict[str, tuple[Any, Callable[[Net, torch.Tensor], Any]]] = {
    "a module": ("blocks.1.norm", lambda n, h: blocks(n, h, 2)[0]),
    "all that a module returns": ("blocks.0", lambda n, h: blocks(n, h, 1)),
    "one of what a module returns": (("blocks.0", 1), lambda n, h: blocks(n, h, 1)[1]),
    "a function of a module's output": (("blocks.0", 1, torch.sin), lambda n, h: blocks(n, h, 1)[1].sin()),
    "all calls of a module": ("cell", cells),
    "one call of a module": (("cell", -1), lambda n, h: cells(n, h)[-1]),
    "what is overwritten later": ("early", lambda n, h: n.early(h)),
    "a field that is called as a module is": ("head", lambda n, h: n.head(torch.tanh(cells(n, h)[-1])).sin()),
    "a field of a field": (("pair", 0), lambda n, h: torch.tanh(cells(n, h)[-1])),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", HIDDEN)
def test_a_state_is_named_by_its_module_or_field(case: str, compiled: bool) -> None:
    output, part = HIDDEN[case]
    J = jacobian(torch.compile(NET, backend="eager") if compiled else NET, X, output=output)
    D = by_hand(part)
    V = x(len(D), 3)
    np.testing.assert_allclose(J.rmatmat(V), D.T @ V.numpy(), atol=1e-12)
    np.testing.assert_allclose(J.matmat(J.rmatmat(V)), D @ (D.T @ V.numpy()), atol=1e-11)
    g = np.einsum("bnp,bnk->bkp", D.reshape(5, -1, D.shape[1]), V.numpy().reshape(5, -1, 3))
    np.testing.assert_allclose(J.block_rmatmat(V), g, atol=1e-12)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), atol=1e-11)


WRONG: dict[str, tuple[Any, str]] = {
    "a misspelt module": ("blocks.1.nrm", "did you mean 'blocks.1.norm'"),
    "a misspelt field": ("hiden", r"a dict with head, hidden, pair, and no module .* did you mean 'hidden'"),
    "a field that is None": ("nothing", "there is no 'nothing'"),
    "an index of a mapping": (0, "there is no 0 in a dict with head"),
    "an index too large": (("blocks.0", 2), r"there is no 2 in a tuple of 2"),
    "a module that is not called": ("idle", "not called in the forward pass"),
    "a name inside a tensor": (("hidden", "T"), "there is no 'T' in a Tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_name_is_told_what_there_is(case: str) -> None:
    output, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        jacobian(NET, X, output=output)


def test_a_name_is_a_field_of_a_named_tuple_or_an_object() -> None:
    Pair = namedtuple("Pair", "first second")
    layer = nn.Linear(4, 2, **F64)

    class Returns(nn.Module):
        def __init__(self, make: Any) -> None:
            super().__init__()
            self.layer, self.make = layer, make

        def forward(self, a: torch.Tensor) -> Any:
            return self.make(a, self.layer(a))

    class Thing:
        def __init__(self, first: Any, second: Any) -> None:
            self.first, self.second = first, second

    D = dense(jacobian(layer, X))
    for make in (Pair, Thing):
        np.testing.assert_allclose(dense(jacobian(Returns(make), X, output="second")), D)


def test_hooks_are_put_back() -> None:
    jacobian(NET, X, output="cell").block_sqnorms(x(60, 2))
    with pytest.raises(ValueError, match="not called"):
        jacobian(NET, X, output="idle")
    assert not any(m._forward_hooks for m in NET.modules())


def test_a_hidden_state_that_is_not_copied_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OUTPUTS.torch, "clone", lambda tensor: tensor)
    with pytest.raises(AssertionError):
        test_a_state_is_named_by_its_module_or_field("what is overwritten later", False)


# -- inputs by keyword -------------------------------------------------------------------------------------
class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, **F64)

    def forward(self, h: torch.Tensor, mask: Any = None, table: Any = None, scale: float = 1.0) -> torch.Tensor:
        z = torch.tanh(self.layer(h))
        z = z if table is None else z @ table
        return scale * (z if mask is None else z * mask[..., None])


MASK = torch.tensor([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1]])


@pytest.mark.parametrize("batch_axis", [0, 1, None])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_inputs_may_come_by_keyword(kind: Any, batch_axis: int | None) -> None:
    model, h, table = Masked(), x(5, 2, 4), x(3, 3)
    mask = MASK
    if batch_axis == 1:
        h, mask = h.transpose(0, 1), mask.T
    with_keywords = [
        jacobian(model, h, kwargs=kind(mask=mask, scale=2.0), shared={"table": table}, batch_axis=batch_axis),
        jacobian(model, kwargs=kind(h=h, mask=mask, scale=2.0), shared={"table": table}, batch_axis=batch_axis),
    ]

    def fn(p: Any, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (h, mask, table, 2.0))

    D = jacobian(fn, h, mask, params=dict(model.named_parameters()), batch_axis=batch_axis)
    V = x(D.shape[0], 3)
    for J in with_keywords:
        assert J.shape == (30, 15)
        torch.testing.assert_close(J.block_rmatmat(V), D.block_rmatmat(V))
        torch.testing.assert_close(J.sketch_gram(V), D.sketch_gram(V))
        torch.testing.assert_close(J.matmat(J.rmatmat(V)), D.gram_matmat(V))


def test_keywords_reach_a_function_too() -> None:
    model, h = Masked(), x(5, 2, 4)

    def fn(p: Any, h: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.func.functional_call(model, p, (h,), kwargs)

    K = ntk(fn, h, params=dict(model.named_parameters()), kwargs={"mask": MASK}, shared={"scale": 2.0})
    np.testing.assert_allclose(
        float(te.exact(K)), float(te.exact(ntk(model, h, kwargs={"mask": MASK, "scale": 2.0}))), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"table": x(3, 3)}, ValueError, r"\[3, 5\].*shared="),
        ({"scale": torch.tensor(2.0)}, ValueError, "no such axis.*shared="),
    ],
)
def test_what_all_examples_share_is_told_where_it_belongs(kwargs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        jacobian(Masked(), x(5, 2, 4), kwargs=kwargs)
    assert jacobian(Masked(), x(5, 2, 4), shared=kwargs).n_blocks == 5


def test_a_batch_that_is_given_as_one_argument_is_told_to_come_by_keyword() -> None:
    with pytest.raises(TypeError, match="kwargs="):
        jacobian(Masked(), UserDict(h=x(5, 2, 4)))


def test_a_keyword_is_given_once() -> None:
    with pytest.raises(ValueError, match="mask"):
        jacobian(Masked(), x(5, 2, 4), kwargs={"mask": MASK}, shared={"mask": MASK})
