"""The algorithms by name, as presets of `PruneAndGrow`; every field can be given another value."""

from __future__ import annotations

from dataclasses import dataclass, field

from toykern.sparse.fan_in import ConstantFanIn
from toykern.sparse.grow import DenseGradient, GrowCriterion, MomentumGrowth, RandomGrowth, SampledGradient
from toykern.sparse.prune import Magnitude, PruneCriterion
from toykern.sparse.recipe import PruneAndGrow, Recipe
from toykern.sparse.schedules import DropSchedule


@dataclass(frozen=True, kw_only=True)
class Static(Recipe):
    """The connections stay as they are: the control beside the others, with the same calls and reports.

    >>> Static().is_update(100)
    False
    """


@dataclass(frozen=True, kw_only=True)
class SET(PruneAndGrow):
    """Sparse Evolutionary Training (Mocanu et al. 2018, Algorithm 1): drop by magnitude, grow at random.

    A fraction ζ (`drop_fraction`, 0.3 in the paper) of the positive values nearest to 0 goes, and the same
    fraction of the negative ones; as many connections come at random places. The paper updates once an epoch:
    set `interval` to that many steps, and `end` to the last but one update, since its last epoch only drops.
    Its new connections start from random values: `grown_std`; here they start from 0.

    >>> SET(interval=500).schedule
    'constant'
    """

    prune: PruneCriterion = field(default_factory=lambda: Magnitude(by_sign=True))
    grow: GrowCriterion = field(default_factory=RandomGrowth)
    schedule: DropSchedule = "constant"


@dataclass(frozen=True, kw_only=True)
class RigL(PruneAndGrow):
    """Rigging the Lottery (Evci et al. 2020, Algorithm 1): drop by magnitude, grow by the dense gradient.

    Every ΔT = `interval` steps up to T_end = `end`, each layer drops its fraction α/2 · (1 + cos(π t/T_end))
    (eq. 1; α = `drop_fraction`) of smallest |value|, and grows as many of largest |gradient| among all places
    that now have no connection, those just dropped included; one that is picked again keeps its value and
    moments. New connections start from 0. The paper uses ΔT = 100, α = 0.3 and 75% of the training for T_end,
    and takes the gradient in place of an optimiser step; here it is the gradient of the step just made (or of
    the last `accumulate`).

    >>> RigL(end=7500).fraction(0)
    0.3
    """

    grow: GrowCriterion = field(default_factory=DenseGradient)


@dataclass(frozen=True, kw_only=True)
class SRigL(ConstantFanIn):
    """Structured RigL (Lasby et al. 2024, §3): RigL with constant fan-in and neuron ablation.

    See `ConstantFanIn` for the steps. The paper uses γ_sal = `ablation` = 0.3 for convolutional networks and
    0.95 for transformers; build the layers with `fan_in=`.

    >>> SRigL(end=7500).ablation
    0.3
    """


@dataclass(frozen=True, kw_only=True)
class SNFS(PruneAndGrow):
    """Sparse Networks From Scratch (Dettmers & Zettlemoyer 2019, §3): sparse momentum.

    Drops by magnitude in each layer; what was dropped anywhere is dealt to the layers in proportion to the
    mean |momentum| of their connections (§3.2), and grown where a layer's |momentum| is largest among places
    without one (§3.3). The momentum is that of all positions, kept by the recipe: a dense gradient at every
    step. The paper begins with half of the connections and lowers it by a cosine, once an epoch. Layers can
    take in
    connections only as far as their capacity goes: build them with room (`capacity=`).

    >>> SNFS(end=1000).redistribution
    'score'
    """

    grow: GrowCriterion = field(default_factory=MomentumGrowth)
    drop_fraction: float = 0.5
    redistribution: str | None = "score"


@dataclass(frozen=True, kw_only=True)
class GSE(PruneAndGrow):
    """Guided Stochastic Exploration (Heddes et al. 2024, Algorithm 1): the gradient at sampled places.

    Of as many places as there are connections (times γ, `SampledGradient(ratio)`), drawn among those without
    one, the ones of largest |gradient| grow, and the smallest |value| among the older connections go. Never
    forms a dense gradient. Places are drawn uniformly, or by the paper's bounds or estimates of the gradient:
    `grow=SampledGradient(distribution="grabo")`, `"graest"`. The paper uses a drop fraction of 0.2 with a
    cosine, every 1000 steps, and a global scope (`scope="global"`).

    >>> GSE(end=1000).grow
    SampledGradient(ratio=1.0, distribution='uniform')
    """

    grow: GrowCriterion = field(default_factory=SampledGradient)
    drop_fraction: float = 0.2
