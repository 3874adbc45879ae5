"""Search: plans made for one model, from a calibration batch."""
