"""Lets a CPU use all its cores where a model multiplies few rows, as when it writes a handful of texts.

A linear layer computes x W^T. With 2 to some 16 rows in x, MKL gives that product mostly to one core; turned
round, as (W x^T)^T, the long side of W is what it divides, and all cores get their share. Turned round it
likes few rows or a multiple of 8, so others are filled up with zeros. Above 16 rows a whole model gains
nothing from it.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

MAX_ROWS = 16
_FEW_ROWS, _ROWS_TOGETHER = 4, 8


def turn_thin_products(model: Any) -> int:
    """Change the linear layers of a model on a CPU; results stay equal but for the last bits.

    For models that only write: nothing here is meant for training or for layers with adapters.

    Returns:
        How many layers were changed; none on a GPU or in half precision.
    """
    thin = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype is torch.float32
    ]
    for layer in thin:
        setattr(layer, "forward", MethodType(_forward, layer))  # noqa: B010 - mypy knows methods as fixed
    return len(thin)


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return the layer's output, (..., in) to (..., out)."""
    n_rows = x.numel() // layer.in_features
    if not 1 < n_rows <= MAX_ROWS:
        return nn.functional.linear(x, layer.weight, layer.bias)
    rows = x.reshape(n_rows, layer.in_features)
    if n_rows > _FEW_ROWS and n_rows % _ROWS_TOGETHER:
        rows = nn.functional.pad(rows, (0, 0, 0, -n_rows % _ROWS_TOGETHER))
    turned = torch.mm(layer.weight, rows.t()).t()[:n_rows]
    out = turned.contiguous().view(*x.shape[:-1], layer.out_features)
    return out if layer.bias is None else out + layer.bias
