"""The core: spec, primitive, choice and algorithms. Nothing here knows Flax, and arrows run one way, downwards."""

from convjax._core import lowering as lowering  # registers how the primitive is compiled
