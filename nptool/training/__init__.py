"""Training (PyTorch, Hugging Face Trainer). Never imports decoding."""
