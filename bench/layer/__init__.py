"""The fused autoencoder layer beside eager PyTorch and torch.compile: `python -m bench.layer`."""
