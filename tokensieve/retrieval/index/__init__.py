"""The index in a folder, and the library of texts around it."""
