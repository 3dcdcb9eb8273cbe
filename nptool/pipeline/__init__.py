"""Stages in their order: the embedded default from end to end, and consistency training in rounds."""
