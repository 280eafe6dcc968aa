"""Rewriting a network so that it computes the same numbers faster: BatchNorm folded into convolutions, compilation."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import nn

log = logging.getLogger(__name__)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """`network` (in evaluation mode) with every BatchNorm that alone follows a convolution folded into it.

    Equal up to the rounding of a product (relative 1e-6). A network that cannot be traced comes back as it is.
    """
    if not any(type(module) is nn.BatchNorm2d for module in network.modules()):
        return network
    try:
        traced = torch.fx.symbolic_trace(network)
    except Exception as error:  # whatever the network's own code raises when it meets a symbol
        log.info("BatchNorm is not folded: %s", error)
        return network
    modules, calls = dict(traced.named_modules()), Counter(node.target for node in traced.graph.nodes)
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) is not nn.BatchNorm2d:
            continue
        source = node.args[0]
        convolved = source.op == "call_module" and type(modules[source.target]) is nn.Conv2d
        if not convolved or len(source.users) > 1 or calls[source.target] > 1:
            continue
        folded = nn.utils.fusion.fuse_conv_bn_eval(modules[source.target], modules[node.target])
        traced.set_submodule(source.target, folded)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast once, in place, what autocast would cast in every batch: the weights of convolutions and linear layers. Same results."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(dtype)


def compile_network(network: nn.Module, example: torch.Tensor) -> nn.Module | None:
    """`network` compiled for inputs of the shape of `example`, or None (with a warning) where that fails: no C++ compiler, say.

    To be called under the very contexts (inference, autocast, threads) that it will run under. On a CPU the weights are frozen
    into the program, which lets the compiler lay them out as its kernels read them.
    """
    try:
        compiled = torch.compile(network, dynamic=False, options={"freezing": True} if example.device.type == "cpu" else None)
        compiled(example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a missing or broken compiler raises is the choice of three libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        log.warning("the network cannot be compiled and runs as it is, slower (%s)", reason)
        return None
    return compiled
