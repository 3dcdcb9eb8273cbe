"""Training on the plain autoregressive loss, from scratch or from a finished model."""
