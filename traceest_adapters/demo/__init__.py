"""The demo: two small models learn real digits while their Neural Tangent Kernels are measured.

data → models (`jax_models`, `torch_models`) → measure → report and plot; `run` ties them together.
"""
