"""`make systems`: re-run the check of every published system that is delivered, and write the record.

A row is `shown` where the effect its table entry asks for was measured here, `runs` where the method is right and runs but the
effect did not show at this scale; the numbers stand beside it either way. Nothing is set by hand.
"""
