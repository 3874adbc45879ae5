"""Other people's programs under a plan; each module asks for its program when it is imported, and nothing here imports them."""
