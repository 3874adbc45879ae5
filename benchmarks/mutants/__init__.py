"""Mutants: methods and their parts, broken on purpose in small ways, to see whether the contract notices."""
