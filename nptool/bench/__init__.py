"""Decoding methods measured against each other on one GGUF. Never imports training."""
