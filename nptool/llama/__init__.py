"""A thin layer over llama.cpp: models, contexts, batches. Knows no decoding algorithm."""
