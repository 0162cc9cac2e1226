"""The resident trainer: settings, optimisers, schedules, and the seam to its kernels."""
