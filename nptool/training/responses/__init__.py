"""Training data that the model itself wrote: collected trajectories, or prompts to collect from first."""
