"""Other people's programs under a plan."""
