"""`toykern.fit`: from models, data and settings to a run."""
