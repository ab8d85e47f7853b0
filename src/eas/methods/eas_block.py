"""The block of EAS: where PIAs stand in for what is skipped and adapt what is kept (paper Eq. 7, Fig. 2)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eas.hf.skipping import Request, SkippableBlock
from eas.hf.versions import TransformersChangedError
from eas.methods.eas_fold import Aside, fold_attention, fold_ffn
from eas.models.anatomy import ATTENTION_INPUTS, FFN_INPUTS
from eas.pia import PIA, SharedFold


class EASBlock(SkippableBlock):
    """A pre-norm decoder block whose attention, or FFN, may be skipped.

    Kept: ``x += MHA(n + adapt_pia(n)); x += FFN(Nf(x))``. Attention skipped: ``x += FFN(g * (n + skip_pia(n)))``.
    FFN skipped: ``x += ffn_pia(Nf(x))``; where both are skipped, it alone remains. A PIA is None where the candidates
    or the pruned skip set have no use for it.
    """

    skip_pia: PIA | None
    adapt_pia: PIA | None
    ffn_pia: PIA | None
    shared_fold: SharedFold | None
    constant_fold: Aside | None
    fold_per_example: bool

    def forward(self, hidden_states: Tensor, *, request: Request | None = None, **kwargs: Any) -> Tensor:
        request = given(request)
        if not self.skip_mha:
            z, attention = self._adapt(self.input_layernorm(hidden_states), request)
            attended, _ = attention(hidden_states=z, **kwargs)
            hidden_states = hidden_states + attended
        if self.skip_ffn:  # Table 5; no linear map follows that the PIA could be folded into
            assert self.ffn_pia is not None
            n = self.post_attention_layernorm(hidden_states)
            hidden_states = hidden_states + self.ffn_pia(n, self.prompt_state(self.ffn_pia, n, request))
        elif self.skip_mha:
            z, ffn = self._adapt(self.input_layernorm(hidden_states), request)
            hidden_states = hidden_states + ffn(z)
        else:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states

    def _adapt(self, n: Tensor, request: Request) -> tuple[Tensor, Any]:
        """What the FFN (skipped) or the attention (kept) reads, and that module; the PIA is in one or the other."""
        pia, body, states = self.foldable_pia(), self.reader()[0], request.states
        assert pia is not None  # select and prune see to it
        if self.constant_fold is not None:
            folded = self.constant_fold.body
            if not pia.reads_prompt:
                return n, folded
            return n, partial(folded, bias=self._kept("constant", n, request))
        if self.shared_fold is not None:
            return self.shared_fold(n, self._kept("shared", n, request)), body
        if self.fold_per_example:
            own = None if states is None else states.folded.get(self.index)
            if own is None:
                own = self.fold_for(self.prompt_state(pia, n, request))
                if states is not None:
                    states.folded[self.index] = own
            return n, own
        z = n + pia(n, self.prompt_state(pia, n, request))
        if self.skip_mha:
            z = pia.output_scale(self.post_attention_layernorm.weight) * z
        return z, body

    def _kept(self, mode: str, n: Tensor, request: Request) -> Tensor:
        """What a fold makes of the prompt state, once per request unless the state runs on."""
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
                states.kept[self.index, mode] = kept[:, -1:].clone()  # a view would hold all tokens
        return kept

    def foldable_pia(self) -> PIA | None:
        """The PIA before the FFN (attention skipped) or the attention; None where both parts are skipped."""
        if self.skip_mha:
            return None if self.skip_ffn else self.skip_pia
        return self.adapt_pia

    def pias(self) -> dict[int, PIA]:
        """The PIAs that the skip set puts to use, by the key of their prompt state."""
        pias = {self.index: self.foldable_pia(), ffn_key(self.index): self.ffn_pia if self.skip_ffn else None}
        return {key: pia for key, pia in pias.items() if pia is not None}

    def stand_ins(self) -> list[PIA]:
        return list(self.pias().values())

    def prompt_state(self, pia: PIA, n: Tensor, request: Request) -> Tensor:
        """The prompt state of a PIA in use: the request's, or computed from the prompt and left there as of its end.

        Raises:
            TransformersChangedError: the prompt was read in an earlier call, and its state is not there.
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
        """What reads the foldable PIA's output, FFN (skipped) or attention, and the names of its maps that do."""
        return (self.mlp, FFN_INPUTS) if self.skip_mha else (self.self_attn, ATTENTION_INPUTS)

    def fold_for(self, state: Tensor) -> nn.Module:
        """The FFN (skipped) or attention (kept) with the PIA folded into its input maps for one sequence.

        It shares all other weights with the original and belongs to the request, so that two requests never see each
        other. The arithmetic is in the base's dtype: in bfloat16 a third of the time of float32.

        Raises:
            ValueError: the batch holds several sequences.
        """
        if state.shape[0] != 1:
            raise ValueError(
                f"per_example folding serves one sequence at a time, got a batch of {state.shape[0]}; "
                "use fold(model, 'shared') for batches and beams"
            )
        pia, dtype = self.foldable_pia(), self.input_layernorm.weight.dtype
        assert pia is not None
        alpha = state[0, 0, :2]
        if not self.skip_mha:
            return fold_attention(self.self_attn, pia, alpha, dtype)
        c = None if pia.down2 is None else pia.c(state)[0, 0]
        return fold_ffn(self.mlp, pia, alpha, self.post_attention_layernorm.weight, c, dtype)

    @torch.no_grad()
    def fold_constant(self) -> None:
        """Folds the PIA, whose router is constant, once for all sequences."""
        pia = self.foldable_pia()
        assert pia is not None
        assert pia.mix is not None
        alpha = pia.alpha()
        if self.skip_mha:
            self.constant_fold = Aside(fold_ffn(self.mlp, pia, alpha, self.post_attention_layernorm.weight))
        else:
            self.constant_fold = Aside(fold_attention(self.self_attn, pia, alpha))

    def prompt_state_bytes(self) -> int:
        """Bytes that one sequence's decoding keeps of its prompt in this block."""
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
    """The request, which the language model hands to every block.

    Raises:
        TransformersChangedError: it did not arrive.
    """
    if request is None:
        raise TransformersChangedError("the language model does not hand the keyword 'request' on to its blocks")
    return request
