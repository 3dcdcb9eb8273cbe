"""Decoding methods measured against each other on one GGUF, and the states of an answer. Never imports training."""
