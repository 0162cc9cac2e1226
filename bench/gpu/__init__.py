"""How fast `tk.fit` is on a GPU, beside what PyTorch and JAX make of the same training there.

`python -m bench.gpu` measures and writes every figure; `make gpu-check` does so among its stages.
"""
