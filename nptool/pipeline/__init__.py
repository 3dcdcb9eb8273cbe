"""Several stages in one command: the embedded default, and consistency training in rounds."""
