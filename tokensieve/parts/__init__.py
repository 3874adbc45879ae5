"""Parts that methods are composed of: pure functions on tensors."""
