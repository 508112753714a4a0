"""The classic image filters, in any number of dimensions: equal to `scipy.ndimage` where that has them.

All are correlations or convolutions of the core, so that they jit, vmap and differentiate. `axes` says along which axes
of `x` (all by default); the others are batch and channels. What lies beyond the border is said in ndimage's words:

| `mode` | beyond `a b c` | in numpy |
|---|---|---|
| "reflect", "grid-mirror" | `b a \\| a b c \\| c b` | symmetric |
| "mirror" | `c b \\| a b c \\| b a` | reflect |
| "nearest" | `a a \\| a b c \\| c c` | edge |
| "wrap", "grid-wrap" | `b c \\| a b c \\| a b` | wrap |
| "constant", "grid-constant" | `cval cval \\| a b c \\| cval cval` | constant |

One for all axes, or one each. Floating and complex arrays keep their dtype (16-bit ones are computed in float32).
Integers do with integer weights (Sobel, Scharr, Prewitt, Laplacian), exactly, narrow ones as int32, where ndimage would
wrap around; with other weights they give the default float, where ndimage would round down after each axis.
Large kernels go through Fourier transforms, whose error is relative to the largest output.

Files: `weigh` computes, `kernels` has the weights, `separate` their low rank; the others what people call.
"""

from convjax.filters.derivative import emboss, prewitt, scharr, sobel
from convjax.filters.general import convolve, correlate
from convjax.filters.kernels import gabor_kernel, gaussian_kernel, motion_kernel
from convjax.filters.laplace import difference_of_gaussians, laplacian, laplacian_of_gaussian
from convjax.filters.low_rank import Separable, separate
from convjax.filters.sharpening import sharpen, unsharp
from convjax.filters.smooth import box, gaussian, motion
from convjax.filters.texture import gabor

__all__ = [
    "Separable",
    "box",
    "convolve",
    "correlate",
    "difference_of_gaussians",
    "emboss",
    "gabor",
    "gabor_kernel",
    "gaussian",
    "gaussian_kernel",
    "laplacian",
    "laplacian_of_gaussian",
    "motion",
    "motion_kernel",
    "prewitt",
    "scharr",
    "separate",
    "sharpen",
    "sobel",
    "unsharp",
]
