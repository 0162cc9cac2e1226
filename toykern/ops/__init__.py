"""Ops that torch knows by name (`torch.ops.toykern`), one file per kernel: checks, schema, gradients."""
