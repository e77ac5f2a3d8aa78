"""Jacobians and Neural Tangent Kernels of PyTorch modules and functions.

>>> import torch, traceest as te
>>> from traceest_adapters.torch import ntk
>>> model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
>>> K = ntk(model, torch.randn(20, 5))
>>> K.shape
(60, 60)
>>> te.effective_rank(K, n_probes=2, rng=0).n_rmatvecs
2
"""

from traceest_adapters.torch import backend  # noqa: F401  (registers itself)
from traceest_adapters.torch.calculus import TorchHessian
from traceest_adapters.torch.calls import jacobian, ntk
from traceest_adapters.torch.curvature import empirical_fisher, gauss_newton, hessian
from traceest_adapters.torch.operator import TorchJacobian

__all__ = ["TorchHessian", "TorchJacobian", "empirical_fisher", "gauss_newton", "hessian", "jacobian", "ntk"]
