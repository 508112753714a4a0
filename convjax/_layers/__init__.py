"""What the layers of `convjax.nnx` and `convjax.linen` compute, as functions of arrays: no parameters, no Flax."""
