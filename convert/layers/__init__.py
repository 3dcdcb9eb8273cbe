"""What model families share: their description, the tensors of a layer, RoPE, stored weights. Names no family."""
