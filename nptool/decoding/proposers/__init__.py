"""Who drafts: one module each, and the registry `methods`."""
