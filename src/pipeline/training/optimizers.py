"""The optimisers of the protocols, over PyTorch's functions of the same names.

The classes of `torch.optim` import `torch._dynamo` when the first one is made: 1.5 CPU seconds, which a training of seconds cannot afford
and nothing here uses. These hold the same state, make the same calls and give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.radam import radam
from torch.optim.sgd import sgd

State = dict[str, Tensor]  # of one parameter, by name
BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}  # PyTorch's defaults, which every method keeps


def _adam(parameters: list[Tensor], states: list[State], lr: float, weight_decay: float, decoupled: bool) -> None:
    """Fused: all of Adam's arithmetic in one pass over the weights, a fifth of the time of the default on a CPU. With one patient a step
    and ten million weights the optimiser otherwise costs more than the network.
    """
    first, second, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    rates = {**BETAS, "lr": lr, "weight_decay": weight_decay, "amsgrad": False, "maximize": False}
    adam(parameters, _gradients(parameters), first, second, [], steps, fused=True, decoupled_weight_decay=decoupled, **rates)


def _radam(parameters: list[Tensor], states: list[State], lr: float, weight_decay: float) -> None:
    first, second, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    rates = {**BETAS, "lr": lr, "weight_decay": weight_decay}
    radam(parameters, _gradients(parameters), first, second, steps, decoupled_weight_decay=True, **rates)


def _sgd(parameters: list[Tensor], states: list[State], lr: float, weight_decay: float) -> None:
    buffers = [state.get("momentum_buffer") for state in states]
    rates = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "maximize": False}
    sgd(parameters, _gradients(parameters), buffers, **rates)
    for state, buffer in zip(states, buffers, strict=True):
        state["momentum_buffer"] = buffer


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters]


UPDATES: dict[str, Callable[..., None]] = {
    "adam": partial(_adam, decoupled=False),  # weight decay is added to the gradient (L2)
    "adamw": partial(_adam, decoupled=True),
    "radam": _radam,  # decoupled, as in SurvPath's code
    "sgd": _sgd,
}


class Optimizer:
    """One optimiser over all `parameters` that can be trained; `lr` may be set before every step.

    name: a key of `UPDATES`. A parameter without a gradient is left as it is, its state too, as by `torch.optim`.
    """

    def __init__(self, name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._update, self._parameters = UPDATES[name], list(parameters)
        self._states: list[State] = [{} for _ in self._parameters]
        self._moments = name != "sgd"
        self.lr, self.weight_decay = lr, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        used = [(p, state) for p, state in zip(self._parameters, self._states, strict=True) if p.grad is not None]
        if not used:
            return
        for parameter, state in used:
            if self._moments and not state:
                state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        parameters, states = map(list, zip(*used, strict=True))
        self._update(parameters, states, self.lr, self.weight_decay)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state, to be saved; the tensors are not copied."""
        return {"states": self._states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, on the devices of the parameters."""
        self._states = [
            {name: value.to(parameter.device) for name, value in state.items()}
            for parameter, state in zip(self._parameters, saved["states"], strict=True)
        ]
