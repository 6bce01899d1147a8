"""Mathematics as functions: keyword-only tensors with stated shapes in, tensors or `LossOutput` out; no config."""
