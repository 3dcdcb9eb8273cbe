"""Collection of a model's own responses and Jacobi trajectories (PyTorch)."""
