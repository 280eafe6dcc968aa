"""A fitted forest as tensors: saved like any other weights, read back without executing anything, traversed in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NODES = ("feature", "threshold", "left", "right")


class Forest(nn.Module):
    """x [B, d] → the mean over T trees of what their leaves hold, [B, K].

    All trees lie behind each other in one list of N nodes: `feature`, `threshold`, `left`, `right` [N], `value` [N, K]; `roots` [T]
    and `depth` []. A leaf is its own child, so that a walk may stand still. Until `set` there is one leaf that holds `value` [K].
    """

    def __init__(self, value: Sequence[float]) -> None:
        super().__init__()
        whole = torch.zeros(1, dtype=torch.int32)
        for name in ("feature", "left", "right", "roots"):
            self.register_buffer(name, whole.clone())
        self.register_buffer("threshold", torch.zeros(1, dtype=torch.float64))  # as fitted: a float32 threshold may send a tie astray
        self.register_buffer("value", torch.tensor([list(value)], dtype=torch.float32))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int32))

    def set(self, trees: Sequence[Any], values: Sequence[np.ndarray]) -> None:
        """Take over fitted trees (``tree_`` of scikit-learn or scikit-survival) with the values [n_nodes, K] of their nodes."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in NODES}
        roots = np.cumsum([0, *(tree.node_count for tree in trees)])
        for start, tree in zip(roots, trees, strict=False):
            leaf, itself = tree.children_left < 0, np.arange(tree.node_count)
            parts["feature"].append(np.where(leaf, 0, tree.feature))
            parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
            parts["left"].append(np.where(leaf, itself, tree.children_left) + start)
            parts["right"].append(np.where(leaf, itself, tree.children_right) + start)
        found = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        found |= {"roots": roots[:-1], "value": np.concatenate(values), "depth": np.array(max(tree.max_depth for tree in trees))}
        for name, array in found.items():
            old = getattr(self, name)
            setattr(self, name, torch.from_numpy(array).to(old.device, old.dtype))

    def forward(self, x: Tensor) -> Tensor:
        x, feature, left, right = x.double(), self.feature.long(), self.left.long(), self.right.long()
        at = self.roots.long().expand(len(x), -1)
        for _ in range(int(self.depth)):
            at = torch.where(x.gather(1, feature[at]) <= self.threshold[at], left[at], right[at])
        return torch.stack([self.value[rows].double().mean(dim=0) for rows in at])  # a patient at a time: [B, T, K] can be large

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # How many nodes there are is known only after fitting, so what is read decides the shapes.
        for name, old in self.named_buffers(recurse=False):
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], dtype=old.dtype, device=old.device))
        super()._load_from_state_dict(state, prefix, *rest)
