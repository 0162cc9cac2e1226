"""The names that annotations want: of what the public functions take, and of what they return.

They are those of the rooms, handed out in one place. What is public and not only a type (`toykern.Run`,
`toykern.TiedAutoencoder`, …) is a name of the package itself.

>>> import toykern as tk
>>> from toykern.typing import AnyModel, Source
>>> def trained(model: AnyModel, data: Source) -> tk.Run:
...     return tk.fit(model, data, steps=3, batch_size=8)
>>> trained(tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.1)).step
3
"""

from toykern.arguments.broadcast import Values
from toykern.data.dependence import Dependence
from toykern.data.groups import Group
from toykern.data.sources import Source
from toykern.experiments import Experiment, Outcome, Result
from toykern.fitting.fitting import Callback
from toykern.metrics.dictionaries import Matching
from toykern.nn import StackedModel
from toykern.nn.kinds import AnyModel
from toykern.sparse import AttachedTopology, Recipe
from toykern.sparse.rules import Rewindable
from toykern.sweeps import SweepPlan
from toykern.sweeps.boxes import Box
from toykern.sweeps.job import Measure, Plan
from toykern.training import Optimizer
from toykern.training.optim.rates import Rate, Scales
from toykern.training.progress import Bar, BarMaker
from toykern.training.resident_topology import ResidentTopology
from toykern.training.schedule import Schedule

__all__ = [
    "AnyModel",
    "AttachedTopology",
    "Bar",
    "BarMaker",
    "Box",
    "Callback",
    "Dependence",
    "Experiment",
    "Group",
    "Matching",
    "Measure",
    "Optimizer",
    "Outcome",
    "Plan",
    "Rate",
    "Recipe",
    "ResidentTopology",
    "Result",
    "Rewindable",
    "Scales",
    "Schedule",
    "Source",
    "StackedModel",
    "SweepPlan",
    "Values",
]
