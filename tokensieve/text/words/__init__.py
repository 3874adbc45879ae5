"""Words and their pieces: ways to cut them by one vocabulary, to choose the vocabulary, and to judge both."""
