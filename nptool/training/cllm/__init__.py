"""Consistency training of a CLLM (arXiv 2403.00835, 2512.14681)."""
