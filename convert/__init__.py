"""Hugging Face checkpoints to GGUF. Imports no decoder."""
