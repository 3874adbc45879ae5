"""Methods for denoisers, which go by what a run has been through."""
