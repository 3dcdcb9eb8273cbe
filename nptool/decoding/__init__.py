"""Parallel decoding in llama.cpp: propose, verify, accept. Never imports training."""
