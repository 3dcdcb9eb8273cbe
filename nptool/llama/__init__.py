"""A thin layer over llama.cpp: models, contexts, batches. No decoding algorithm."""
