"""The block of EAS: skip PIAs replace skipped attentions, adapt PIAs correct kept ones (paper Eq. 4-7, Fig. 2).

The steps of a block, for hidden states x ``(batch, tokens, d)`` and the input n of the same shape. n is Na(x) before a
kept attention. In place of a skipped attention n is u = x / rms(x) in the residual form, and Na(x) in the paper's form:

1. The prompt state ``[alpha, c]``, ``(batch, 1, 2 + r)``, from the prompt tokens of n (Eq. 6 and c of Eq. 4). Once per
   request: ``EASBlock.prompt_state``.
2. The PIA's output p, ``(batch, tokens, d)``, from n and the prompt state (Eq. 4 and 5): ``eas.pia.PIA``.
3. Attention skipped: ``x += FFN(g * (n + p))`` (Eq. 7), with g the weight of the norm Nf. Attention kept:
   ``x += MHA(n + p); x += FFN(Nf(x))``.

With p = 0 the residual form is the block with its attention left out, since ``g * u = Nf(x)``. Eq. 7 as printed, the
paper's form, feeds the FFN ``g * Na(x)`` instead, which carries the weight of the attention's norm.

The equations are written for Llama's block. `eas.models.structure` has the terms of other families. What is applied to
the attention's output (Pa) goes with it; what is applied to the FFN's (Pf), and rho, stay. In a parallel block, and in
one without norms before attention and FFN, g is 1 and both forms read n.

Folded, steps 2 and 3 are one: the maps that read ``n + p`` read n (Eq. 8-13, ``eas.methods.eas_fold``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eas.hf.norms import UnitNorm
from eas.hf.skipping import Request
from eas.hf.versions import TransformersChangedError
from eas.methods.eas_fold import Aside, fold_attention, fold_ffn
from eas.models.block import Block
from eas.models.structure import Branch
from eas.pia import PIA, SharedFold


class EASBlock(Block):
    """A decoder block whose attention, or FFN, may be skipped.

    Attention kept: ``x += MHA(n + adapt_pia(n)); x += FFN(Nf(x))``. Attention skipped (Eq. 7):
    ``x += FFN(g * (n + skip_pia(n)))``, n being u in the residual form. FFN skipped: ``x += ffn_pia(Nf(x))``. If both
    are skipped, only the FFN's PIA remains. A PIA is None if the candidates or the pruned skip set do not use it. An
    adapt PIA is None where LoRA adapts.
    """

    skip_pia: PIA | None
    adapt_pia: PIA | None
    ffn_pia: PIA | None
    unit_norm: UnitNorm | None
    shared_fold: SharedFold | None
    constant_fold: Aside | None
    fold_per_example: bool

    def forward(self, hidden_states: Tensor, *args: Any, request: Request | None = None, **kwargs: Any) -> Tensor:
        request, x, mha, ffn = given(request), hidden_states, self.built.mha, self.built.ffn
        came_in = x
        if not self.skip_mha:  # x += MHA(n + p)
            z, attention = self._adapt(self.normed(mha, x), request, x.dtype)
            x = self.attend(x, z, attention, kwargs)
        if self.skip_ffn:  # Table 5; no linear map follows that the PIA could be folded into
            assert self.ffn_pia is not None
            n = self.normed(ffn, came_in if self.built.parallel else x)
            x = x + self.scaled(self.ffn_pia(n, self.prompt_state(self.ffn_pia, n, request)))
        elif self.skip_mha:  # Eq. 7: x += FFN(g * (n + p))
            n = self.normed(mha, x) if self.unit_norm is None else self.unit_norm(x)
            z, body = self._adapt(n, request, x.dtype)
            x = self.feed(x, z, body)
        else:  # x += FFN(Nf(x))
            x = self.feed(x, self.normed(ffn, came_in if self.built.parallel else x), getattr(self, ffn.body))
        return self.end(x, args)

    def _adapt(self, n: Tensor, request: Request, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """The input z, ``(batch, tokens, d)``, of the FFN (attention skipped) or the attention (kept), and that module.

        Not folded, z holds the PIA's output (Eq. 4-7). Folded, z is n or the shared correction of n (Eq. 8-13).
        z has the dtype of the stream; n may be float32.
        """
        pia, body, states = self.foldable_pia(), self.reader()[0], request.states
        if pia is None:  # LoRA adapts what is kept
            return n.to(dtype), body
        if self.constant_fold is not None:
            folded = self.constant_fold.body
            if not pia.reads_prompt:
                return n.to(dtype), folded
            return n.to(dtype), partial(folded, bias=self._kept("constant", n, request))
        if self.shared_fold is not None:
            return self.shared_fold(n, self._kept("shared", n, request)).to(dtype), body
        if self.fold_per_example:
            own = None if states is None else states.folded.get(self.index)
            if own is None:
                own = self.fold_for(self.prompt_state(pia, n, request))
                if states is not None:
                    states.folded[self.index] = own
            return n.to(dtype), own
        z = n + pia(n, self.prompt_state(pia, n, request))  # n + p, Eq. 4 and 5
        if self.skip_mha and (g := self.gain()) is not None:
            z = g * z  # g * (n + p), Eq. 7
        return z.to(dtype), body

    def _kept(self, mode: str, n: Tensor, request: Request) -> Tensor:
        """The fold's form of the prompt state. It is computed once per request, unless the mean is a running one."""
        states = request.states
        kept = None if states is None else states.kept.get((self.index, mode))
        if kept is None:
            pia = self.foldable_pia()
            assert pia is not None
            state = self.prompt_state(pia, n, request)
            if mode == "shared":
                assert self.shared_fold is not None
                kept = self.shared_fold.keep(state)
            else:
                assert self.constant_fold is not None
                kept = self.constant_fold.body.keep(pia.c(state))
            if states is not None and not pia.running:
                states.kept[self.index, mode] = kept[:, -1:].clone()  # a view would keep all tokens in memory
        return kept

    def foldable_pia(self) -> PIA | None:
        """The PIA before the FFN (attention skipped) or before the attention (kept); None if both parts are skipped."""
        if self.skip_mha:
            return None if self.skip_ffn else self.skip_pia
        return self.adapt_pia

    def pias(self) -> dict[int, PIA]:
        """The PIAs that the skip set uses, by the key of their prompt state."""
        pias = {self.index: self.foldable_pia(), ffn_key(self.index): self.ffn_pia if self.skip_ffn else None}
        return {key: pia for key, pia in pias.items() if pia is not None}

    def stand_ins(self) -> list[PIA]:
        return list(self.pias().values())

    def prompt_state(self, pia: PIA, n: Tensor, request: Request) -> Tensor:
        """The prompt state of a PIA in use, ``(batch, 1 or tokens, 2 + r)`` (Eq. 6 and c of Eq. 4).

        The first call computes the state from the prompt and stores it in the request. Later calls read it
        there; a running mean updates it.

        Raises:
            TransformersChangedError: an earlier call read the prompt, but the request has no state of this block.
        """
        states = request.states if pia.reads_prompt else None
        key = ffn_key(self.index) if pia is self.ffn_pia else self.index
        state = None if states is None else states.states.get(key)
        if state is not None and not pia.running:
            return state
        if state is not None:
            state = pia.next_state(n, state)
        elif states is not None and not request.reading:
            raise TransformersChangedError(f"block {self.index} was called in decoding without its prompt state")
        elif request.routes is not None:
            state = request.routes[self.index]
        else:
            state = pia.prompt_state(n, request.prompt_mask, request.token_mask)
        if states is not None:
            states.states[key] = state[:, -1:].clone()
            states.running |= pia.running
        return state

    def reader(self) -> tuple[Any, tuple[str, ...]]:
        """The module after the foldable PIA, FFN (skipped) or attention (kept), and the names of its input maps."""
        branch = self.reading_branch()
        body = getattr(self, branch.body)
        return body, tuple(name for name in branch.inputs if body._modules.get(name) is not None)

    def reading_branch(self) -> Branch:
        """The FFN's branch (attention skipped) or the attention's (kept)."""
        return self.built.ffn if self.skip_mha else self.built.mha

    def dtype(self) -> torch.dtype:
        """Of the arithmetic of folds: that of the norms, as weights may be quantised."""
        branch = self.reading_branch()
        dtype: torch.dtype = getattr(self, branch.norm or branch.behind or "").weight.dtype
        return dtype

    def fold_for(self, state: Tensor) -> nn.Module:
        """The FFN (skipped) or attention (kept) with the PIA folded into its input maps for one sequence (Eq. 8-13).

        The folded module shares all other weights with the original. It belongs to one request, so requests do not
        affect each other. The arithmetic is in the base's dtype: bfloat16 takes a third of the time of float32.

        Raises:
            ValueError: the batch holds several sequences.
        """
        if state.shape[0] != 1:
            raise ValueError(
                f"per_example folding serves one sequence at a time, got a batch of {state.shape[0]}; "
                "use fold(model, 'shared') for batches and beams"
            )
        pia, (body, names) = self.foldable_pia(), self.reader()
        assert pia is not None
        alpha, dtype = state[0, 0, :2], self.dtype()
        if not self.skip_mha:
            return fold_attention(body, names, pia, alpha, dtype)
        c = None if pia.down2 is None else pia.c(state)[0, 0]
        return fold_ffn(body, self.built.ffn, pia, alpha, self.gain(), c, dtype)

    @torch.no_grad()
    def fold_constant(self) -> None:
        """Folds a PIA with a constant router once for all sequences (Eq. 8-13)."""
        pia, (body, names) = self.foldable_pia(), self.reader()
        assert pia is not None
        assert pia.mix is not None
        alpha = pia.alpha()
        if self.skip_mha:
            self.constant_fold = Aside(fold_ffn(body, self.built.ffn, pia, alpha, self.gain()))
        else:
            self.constant_fold = Aside(fold_attention(body, names, pia, alpha))

    def prompt_state_bytes(self) -> int:
        """Bytes that this block stores of the prompt while one sequence is decoded."""
        total, pia = sum(pia.prompt_state_bytes() for pia in self.stand_ins()), self.foldable_pia()
        if pia is None or pia.running:
            return total
        if self.shared_fold is not None:
            total += self.shared_fold.width * self.shared_fold.bias.element_size()
        if self.constant_fold is not None and pia.reads_prompt:
            total += self.constant_fold.body.offset.nbytes
        return total


def ffn_key(index: int) -> int:
    """The key of the prompt state of the PIA in place of block ``index``'s FFN; that of its other PIA is ``index``."""
    return ~index


def given(request: Request | None) -> Request:
    """The request that the language model passes to every block.

    Raises:
        TransformersChangedError: the request did not arrive.
    """
    if request is None:
        raise TransformersChangedError("the language model does not pass the keyword 'request' to its blocks")
    return request
