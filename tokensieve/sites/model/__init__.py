"""What a model is made of, and what differs between releases of the library that it comes from."""
