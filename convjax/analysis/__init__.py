"""What the convolutions of a program are, what they cost, what they see, and who serves them.

- which size, padding, kernel or stride: `output_size`, `output_size_transposed`, `find_padding`, `find_kernel`,
  `find_stride`, `effective_kernel`
- what an output sees: `receptive_field`, `receptive_field_of_layers`, `effective_receptive_field`
- what it costs: `cost`, `roofline`, `temporary_memory`
- which convolutions and layers there are, and what serves them: `collect`, `summary`

Those about a program take a function that JAX can trace, or a Flax module (nnx or linen), then its arguments: arrays,
or `jax.ShapeDtypeStruct`s in their place. Nothing is computed, but for `measure_ceilings` and the gradient in
`effective_receptive_field`.

Files: `modules`, `walk`, `dependence`, `state` and `reach` follow what arrays depend on through a program, `operations`
reads what an equation computes; the others have what people call.
"""

from convjax.analysis.convolutions import Convolution, collect
from convjax.analysis.costs import Cost, cost
from convjax.analysis.effective import EffectiveField, effective_receptive_field
from convjax.analysis.fields import Layer, ReceptiveField, receptive_field_of_layers
from convjax.analysis.memory import temporary_memory
from convjax.analysis.receptive import receptive_field
from convjax.analysis.rooflines import Ceilings, Roofline, measure_ceilings, roofline
from convjax.analysis.sizes import (
    effective_kernel,
    find_kernel,
    find_padding,
    find_stride,
    output_size,
    output_size_transposed,
)
from convjax.analysis.summaries import LayerRecord, Summary, summary

__all__ = [
    "Ceilings",
    "Convolution",
    "Cost",
    "EffectiveField",
    "Layer",
    "LayerRecord",
    "ReceptiveField",
    "Roofline",
    "Summary",
    "collect",
    "cost",
    "effective_kernel",
    "effective_receptive_field",
    "find_kernel",
    "find_padding",
    "find_stride",
    "measure_ceilings",
    "output_size",
    "output_size_transposed",
    "receptive_field",
    "receptive_field_of_layers",
    "roofline",
    "summary",
    "temporary_memory",
]
