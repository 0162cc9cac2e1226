"""`toykern.fit`: from models, data and settings to a run."""

from toykern.fitting.fitting import fit, log_spaced_steps

__all__ = ["fit", "log_spaced_steps"]
