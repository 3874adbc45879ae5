"""A small class-conditional denoiser, a stock ``DiTTransformer2DModel``, on generated scenes of 32 pixels."""
