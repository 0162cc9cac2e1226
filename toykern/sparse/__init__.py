"""Sparse layers' topologies: which connections exist, and how they change while a network trains."""

from toykern.sparse.topology import Places, Topology

__all__ = ["Places", "Topology"]
