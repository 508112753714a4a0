"""Sampling between pixels, in blocks: what the deformable convolutions share."""
