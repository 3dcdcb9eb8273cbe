"""The embedded default from end to end: text-to-SQL data, base model, trajectories, CLLM, scores."""
