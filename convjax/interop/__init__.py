"""Weights of other implementations in our layers and networks, and ours in theirs.

`load_torch`, `load_keras` and `load_tensors` (our own names) fill a model in place, `to_torch`, `to_keras` and
`to_tensors` go back; `save_safetensors` and `load_safetensors` are the files. A file lives one idea: `layouts` how the
axes of each tensor are ordered, `names` which layer of a network is called what elsewhere, `matching` brings both
together and refuses what does not fit. torch, keras and safetensors are imported when they are needed only.
"""

from convjax.interop.files import load_safetensors, save_safetensors
from convjax.interop.from_keras import load_keras, to_keras
from convjax.interop.from_torch import load_torch, to_torch
from convjax.interop.own import load_tensors, to_tensors

__all__ = [
    "load_keras",
    "load_safetensors",
    "load_tensors",
    "load_torch",
    "save_safetensors",
    "to_keras",
    "to_tensors",
    "to_torch",
]
