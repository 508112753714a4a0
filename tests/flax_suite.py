"""Run Flax's own tests of its convolutions on ours: a pytest plugin that puts our classes in the place of Flax's.

In a checkout of google/flax at 18f8f31, with convjax and this folder's parent on the path, and `-p` for the plugin:

    PYTHONPATH=CHECKOUT_OF_CONVJAX pytest -p tests.flax_suite --noconftest \\
        tests/nnx/nn/conv_test.py tests/linen/linen_linear_test.py -k "not (dense or einsum or embed)"

Without network access no test can fetch them, so that this is no part of `make test`; `test_flax_suite.py`, which is,
compares with Flax on a table of the same arguments.
"""

from flax import linen, nnx

import convjax.linen
import convjax.nnx

nnx.Conv, nnx.ConvTranspose = convjax.nnx.Conv, convjax.nnx.ConvTranspose  # type: ignore[misc]
linen.Conv, linen.ConvTranspose = convjax.linen.Conv, convjax.linen.ConvTranspose  # type: ignore[misc]
linen.ConvLocal = convjax.linen.LocalConv  # type: ignore[misc]
