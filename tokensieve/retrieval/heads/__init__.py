"""Trained heads behind an encoder, and the loop that trains them."""
