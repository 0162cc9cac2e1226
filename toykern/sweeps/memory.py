"""How many models of a sweep to train at once, where nobody says."""

from __future__ import annotations

from toykern import _native
from toykern.arguments.memory import free_memory
from toykern.data.dataset import Dataset
from toykern.results.labels import trained_arrays
from toykern.results.run import Run
from toykern.results.store import tensors_of
from toykern.training.batched import bytes_of_step
from toykern.training.ways import BATCHED

_CHUNKS = 16  # at least, of a large sweep: what Ctrl-C or a crash can cost
_FEWEST = {"cuda": 65_536, "cpu": 4_096}  # models that keep all of a device, or all cores, busy
_SHARE = 0.25  # of the free memory
_OF_A_POSITION = 32  # bytes that a topology's update takes for a place where a connection might be
_COPIES = 3  # of a model's numbers at the busiest moment: in training, as inputs, on the way to the store


def default_chunk(probe: Run, n_models: int, at_once: int = 1) -> int:
    """Models per chunk: a sixteenth of the sweep or what keeps the machine busy, as far as memory allows.

    `probe` is one model of the sweep at step 0; so many chunks are trained `at_once` in the same memory.
    """
    device = next(probe.model.parameters()).device
    wanted = max(_FEWEST.get(device.type, _FEWEST["cpu"]), -(-n_models // _CHUNKS))
    fitting = int(_SHARE * free_memory(device) / (at_once * memory_per_model(probe)))
    return max(1, min(wanted, fitting, n_models))


def memory_per_model(probe: Run) -> int:
    """Memory that one model takes at the busiest moment of a chunk."""
    total = _COPIES * bytes_per_model(probe)
    if probe.provenance.get("trainer") == BATCHED:  # which holds a whole step of all models
        size = probe.config["batch_size"]
        samples = probe.data.rows if isinstance(probe.data, Dataset) and size is None else int(size)
        total += bytes_of_step(probe.settings.network(probe.model), 1, samples)
    return total


def bytes_per_model(probe: Run) -> int:
    """Memory that one model of a run takes, records, snapshots and the stream's tables among it."""
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(probe))
    metrics = len(probe.config["record"]) - 1
    total += metrics * probe.loss.shape[1] * 4 * probe.model.n_features
    trained = sum(t.numel() * t.element_size() for t in trained_arrays(probe).values())
    total += trained * len(probe.config["snapshots"])
    if probe.model.network.sparse:
        positions = probe.model.n_features * probe.model.n_hidden
        total += trained + positions * (_OF_A_POSITION if probe.topology is not None else 0)
    if isinstance(probe.data, Dataset):  # its rows are among the tensors above
        return total
    return total + int(_native.tables_layout(probe.data.native()).bytes)
