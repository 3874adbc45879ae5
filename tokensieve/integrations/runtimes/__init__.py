"""What other programs can serve of plans, for the search of one: a file a program."""
