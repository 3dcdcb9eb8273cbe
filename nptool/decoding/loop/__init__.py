"""The loop of every mode, and what it is told: see `nptool.decoding.loop.loop`."""
