"""Encoders: the fastest plan of an encoder within a loss, found on a folder of images, sound or texts."""
