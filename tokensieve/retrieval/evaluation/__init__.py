"""How well and how fast an index answers."""
