"""Sparse layers' topologies: which connections exist, and how they change while a network trains.

| module | what is in it |
|---|---|
| `topology` | the connections of a stack of layers, made, compared and changed |
| `recipe`, `fan_in`, `gradual`, `lottery`, `named` | how they change: recipes, and the algorithms by name |
| `prune`, `grow`, `guided`, `schedules` | the parts that recipes are composed of |
| `change` | what becomes of a layer's connections, carried out |
| `attached`, `layer`, `groups`, `optimizer_state`, `distributed`, `report` | a recipe at work on a model |
| `rewind` | going back to the weights of an earlier step |
| `draws`, `selection` | random choices from counters; largest scores with ties by index |
"""

from toykern.sparse.attached import AttachedTopology
from toykern.sparse.change import Change
from toykern.sparse.fan_in import ConstantFanIn
from toykern.sparse.gradual import GradualMagnitude
from toykern.sparse.grow import DenseGradient, GrowCriterion, MomentumGrowth, RandomGrowth, SampledGradient
from toykern.sparse.layer import AttachedLayer, NoBackwardPass, SparseLayer, is_sparse_layer
from toykern.sparse.lottery import LotteryTicket
from toykern.sparse.named import GSE, SET, SNFS, RigL, SRigL, Static
from toykern.sparse.places import Places
from toykern.sparse.prune import Magnitude, PruneCriterion, RandomPrune, Sensitivity
from toykern.sparse.recipe import PruneAndGrow, Recipe
from toykern.sparse.report import LayerReport, Update
from toykern.sparse.topology import Topology

__all__ = [
    "GSE",
    "SET",
    "SNFS",
    "AttachedLayer",
    "AttachedTopology",
    "Change",
    "ConstantFanIn",
    "DenseGradient",
    "GradualMagnitude",
    "GrowCriterion",
    "LayerReport",
    "LotteryTicket",
    "Magnitude",
    "MomentumGrowth",
    "NoBackwardPass",
    "Places",
    "PruneAndGrow",
    "PruneCriterion",
    "RandomGrowth",
    "RandomPrune",
    "Recipe",
    "RigL",
    "SRigL",
    "SampledGradient",
    "Sensitivity",
    "SparseLayer",
    "Static",
    "Topology",
    "Update",
    "is_sparse_layer",
]
