"""How fast `tk.fit` is beside PyTorch, torch.compile and JAX, all doing the same work in one run.

`python -m bench` prints the table, `pytest bench/ --benchmark-only` runs the same contenders under
pytest-benchmark.
"""
