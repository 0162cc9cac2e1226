"""What a call of `toykern.fit` produced, and the stores that keep it."""
