"""How the inner models of a network adapt while they read an image, and how far they had to.

A TTT layer starts every tile from its learned state and takes a gradient step per mini-batch of
tokens. `Adaptation` changes this for a network while it is entered: no steps at all, a state that
goes on from tile to tile of one image, scans in both orders, or steps only where the loss is not
small already (the paper's future work 2). It also keeps the layer's own
self-supervised loss, 1/2 ||LN(f(k)) - (v - k)||^2 of every token, from before the first step and
after the last: where it was large before, the image was unlike what the layer knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttunet import kernels
from tttunet.errors import ModelError
from tttunet.layers.ttt import InnerLoop

#: off: the learned state, never changed. tile: every tile from the learned state (the paper).
#: image: every tile goes on from the state that the one before has left. both: as `tile`, scanned
#: in both orders and averaged.
Mode = Literal["off", "tile", "image", "both"]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Logit of a learning rate of zero.
_NO_STEP = -200.0


class Adaptation:
    """Changes how the TTT layers of a network adapt, until it is left again.

        with Adaptation(network, "image") as adaptation:
            for tile in tiles_of_one_image:
                network(tile)

    For inference, by one thread at a time. The states of `image` begin with the learned ones and
    end with the `with` block: never across images.

    Args:
        network: any module with TTT layers.
        mode: see `Mode`.
        keep_losses: compute the losses for `loss_maps`; doubles or triples the time of the TTT
            layers.
        gate: a mini-batch makes no step if the mean loss of its tokens, per channel and at the
            state that the tile starts from, is lower. To know that, the tokens are read once
            without steps; a layer whose mini-batches all stay below is done with that.

    Raises:
        ModelError: there is no such mode.
    """

    def __init__(
        self,
        network: nn.Module,
        mode: Mode = "tile",
        keep_losses: bool = False,
        gate: float = 0.0,
    ) -> None:
        if mode not in MODES:
            raise ModelError(f"There is no adaptation '{mode}'.", f"There are {', '.join(MODES)}.")
        self._loops = [module for module in network.modules() if isinstance(module, InnerLoop)]
        self._mode, self._keep, self._gate = mode, keep_losses, gate
        self._states: dict[InnerLoop, tuple[Tensor, ...]] = {}
        self._losses: dict[InnerLoop, Tensor] = {}

    def __enter__(self) -> Adaptation:
        for loop in self._loops:
            loop.adaptation = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for loop in self._loops:
            loop.adaptation = None
        self._states.clear()
        self._losses.clear()

    def run(
        self,
        loop: InnerLoop,
        tokens: tuple[Tensor, Tensor, Tensor],
        lr: Tensor,
        coefficient: Tensor,
        settings: dict[str, Any],
    ) -> Tensor:
        """What `loop` calls in place of its operator.

        Args:
            loop: whose state and norm are used.
            tokens: q, k, v, [batch, heads, tokens, d] each.
            lr: [batch, heads, tokens], logits of the learning rates.
            coefficient: [K].
            settings: keyword arguments of the operator.

        Returns:
            [batch, heads, tokens, d].
        """
        if self._mode == "both":
            settings = {**settings, "bidirectional": True}
        run = _Operator(loop, coefficient, settings)
        if self._mode != "image":
            result = self._read(run, tokens, None if self._mode == "off" else lr, run.initial)
            self._keep_losses(loop, run, tokens, result)
            return result.output
        outputs = []
        for sample in range(len(lr)):
            part = slice(sample, sample + 1)
            one: Any = tuple(x[part] for x in tokens)
            result = self._read(run, one, lr[part], self._states.get(loop, run.initial))
            self._states[loop] = run.last(result)
            outputs.append(result.output)
            self._keep_losses(loop, run, one, result, sample)
        return torch.cat(outputs)

    def _read(
        self,
        run: _Operator,
        tokens: tuple[Tensor, Tensor, Tensor],
        lr: Tensor | None,
        state: tuple[Tensor, ...],
    ) -> kernels.TTTResult:
        """Run the operator, without the steps that the gate forbids."""
        if lr is None or self._gate <= 0:
            return run(tokens, lr, state)
        still = run(tokens, None, state)
        size = run.mini_batch
        parts = run.mean_loss(still.losses).split(size, dim=1)
        closed = self._closed(torch.stack([part.mean(1) for part in parts], dim=1))
        if closed.all():
            return still
        by_token = closed.repeat_interleave(size, dim=1)[:, None, : lr.shape[2]]
        return run(tokens, lr.masked_fill(by_token, _NO_STEP), state)

    def _closed(self, losses: Tensor) -> Tensor:
        """Which mini-batches make no step; losses: [batch, mini-batches]."""
        return losses < self._gate

    def _keep_losses(
        self,
        loop: InnerLoop,
        run: _Operator,
        tokens: tuple[Tensor, Tensor, Tensor],
        result: kernels.TTTResult,
        sample: int = 0,
    ) -> None:
        if not self._keep:
            return
        before = run(tokens, None, run.initial).losses
        after = run(tokens, None, run.last(result)).losses
        # [batch, 2, tokens]: mean over directions, heads and channels.
        losses = torch.stack([run.mean_loss(x) for x in (before, after)], dim=1)
        if sample:
            losses = torch.cat((self._losses[loop], losses))
        self._losses[loop] = losses

    def loss_maps(self, places: Sequence[tuple[InnerLoop, tuple[int, ...]]], size: Any) -> Tensor:
        """The losses of the last forward pass as maps, averaged over layers.

        Args:
            places: layers whose tokens are positions, and the size of their maps.
            size: of the result.

        Returns:
            [batch, 2, *size]: before the first step, after the last.

        Raises:
            ModelError: `places` is empty.
        """
        if not places:
            raise ModelError(
                "This network has no TTT layer whose tokens are places in the image.",
                "Segment without the adaptation map.",
            )
        maps = [
            F.interpolate(self._losses[loop].unflatten(2, shape), size=tuple(size))
            for loop, shape in places
        ]
        return torch.stack(maps).mean(0)


class _Operator:
    """The operator of a layer with what does not change from call to call."""

    def __init__(self, loop: InnerLoop, coefficient: Tensor, settings: dict[str, Any]) -> None:
        linear = loop.config.inner == "linear"
        self._run: Any = kernels.ttt_linear_with_state if linear else kernels.ttt_mlp_with_state
        self._norm = (loop.norm_weight, loop.norm_bias)
        self._coefficient, self._settings = coefficient, settings
        self.mini_batch = len(coefficient)
        self._both = settings["bidirectional"]
        #: The learned state.
        self.initial = loop.initial_state

    def __call__(
        self,
        tokens: tuple[Tensor, Tensor, Tensor],
        lr: Tensor | None,
        state: tuple[Tensor, ...],
    ) -> kernels.TTTResult:
        """Without learning rates the state stays what it is."""
        settings = self._settings
        if lr is None:
            settings = {**settings, "base_lr": None}
            lr = torch.zeros_like(tokens[0][..., 0])
        result: kernels.TTTResult = self._run(
            *tokens, lr, self._coefficient, state, *self._norm, **settings
        )
        return result

    def last(self, result: kernels.TTTResult) -> tuple[Tensor, ...]:
        """The final state, of both directions the mean."""
        return tuple(part.mean(0) if self._both else part for part in result.state)

    def mean_loss(self, losses: Tensor) -> Tensor:
        """([directions,] batch, heads, tokens) -> [batch, tokens], per channel."""
        d = self._norm[0].shape[-1]
        return (losses.mean(0) if self._both else losses).mean(1) / d
