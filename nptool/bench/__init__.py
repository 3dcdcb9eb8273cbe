"""Paired measurements of decoding methods."""
