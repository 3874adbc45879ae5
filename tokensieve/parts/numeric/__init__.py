"""Numbers: packed bits, similarity, position ids."""
