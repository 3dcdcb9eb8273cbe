"""Multi-head training (arXiv 2404.19737): parallel heads of one layer each on a shared trunk."""
