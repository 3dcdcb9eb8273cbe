"""Data files of any known format, read and rendered to token ids."""
