"""Read data files of any known format and render their records to token ids."""
