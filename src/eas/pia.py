"""PIA, the adapter that replaces a skipped attention, and its fold (paper section 4.2, Eq. 4-13).

Notation, as in the paper: n is the normalised input of a block, ``(batch, tokens, d)``; before a skip PIA in the
residual form it is normalised without a weight. nbar is the mean of n over the
prompt tokens of a sequence, ``(batch, 1, d)``. A skip PIA exchanges information through c, a projection of nbar. An
adapt PIA comes before a kept attention and has no c. The equations, and where this file computes them:

- Eq. 6, ``alpha = softmax((nbar Wr + br) / tau)``, ``(batch, 1, 2)``: ``PIA.prompt_state``.
- Eq. 4, ``c = nbar Wd2 + bd2``, ``(batch, 1, r)``: ``PIA.prompt_state``.
- Eq. 4, ``h = s (n Wd1 + bd1 + c)``, ``(batch, tokens, r)``: ``PIA.forward``.
- Eq. 5, ``p = alpha_1 (h Wu1 + bu1) + alpha_2 (h Wu2 + bu2)``, ``(batch, tokens, d)``: ``PIA.forward``.
- Eq. 7, ``FFN(g * (n + p))``: the block; g, ``(d,)``, is the weight of the FFN's norm.
- Eq. 8-13, the fold W' ``(out, d)`` and b' ``(out,)``: ``fold_weights``; the form for any batch: ``SharedFold``.

The *prompt state* of a sequence is ``[alpha, c]``, all that its tokens share: ``(batch, 1, 2 + r)``; without c it is
``(batch, 1, 2)``. It is computed once from the prompt and does not change afterwards. With causal pooling each prompt
token has its own c, ``(batch, tokens, 2 + r)``, and tokens after the prompt use the last one. With a running mean the
state also holds the number of tokens in the mean, ``(batch, tokens, 2 + r + 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eas.costed import Costed
from eas.hf import one_token


class GroupedLinear(nn.Module):
    """A linear map whose inputs and outputs are split into groups that do not mix; starts at zero.

    Args:
        in_features: r.
        out_features: d.
        groups: 1 is an ordinary linear map; divides both sizes.
    """

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, in_features // groups, out_features // groups))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, h: Tensor) -> Tensor:
        groups, rank, _ = self.weight.shape
        if groups == 1:
            return F.linear(h, self.weight[0].T, self.bias)
        mixed = torch.einsum("...gr,gro->...go", torch.unflatten(h, -1, (groups, rank)), self.weight)
        return mixed.flatten(-2) + self.bias

    def dense(self) -> Tensor:
        """The map as one ``(r, d)`` matrix."""
        dense: Tensor = torch.block_diag(*self.weight)  # type: ignore[no-untyped-call]
        return dense


class PIA(Costed):
    """Prompt-aware information adapter: the skip form (with pooling) or the adapt form.

    Args:
        hidden_size: d.
        rank: r.
        pooling: the tokens whose mean gives c: "prompt" (all prompt tokens; skip form) or "causal" (the prompt tokens
            up to each token); "none": there is no c (adapt form, and the base of Table 6).
        running: with causal pooling, whether the mean also takes in the tokens after the prompt.
        router: the source of alpha: "input" (Eq. 6), or "constant" (two trained numbers).
        temperature: tau of Eq. 6.
        hidden_scale: factor on h.
        dropout: dropout on h in training.
        up_groups: groups of the up-projections.
        router_bias: whether a router of "input" has br.
    """

    def __init__(
        self,
        hidden_size: int,
        rank: int,
        *,
        pooling: str,
        running: bool = False,
        router: str = "input",
        temperature: float = 10.0,
        hidden_scale: float = 1.0,
        dropout: float = 0.0,
        up_groups: int = 1,
        router_bias: bool = True,
    ) -> None:
        super().__init__()
        self.temperature, self.hidden_scale = temperature, hidden_scale
        self.causal, self.running = pooling == "causal", pooling == "causal" and running
        self.router = nn.Linear(hidden_size, 2, bias=router_bias) if router == "input" else None
        self.mix = nn.Parameter(torch.zeros(2)) if router == "constant" else None
        self.down1 = nn.Linear(hidden_size, rank)
        self.down2 = nn.Linear(hidden_size, rank) if pooling != "none" else None
        self.up1 = GroupedLinear(rank, hidden_size, up_groups)
        self.up2 = GroupedLinear(rank, hidden_size, up_groups)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.router, self.down1, self.down2):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    @property
    def reads_prompt(self) -> bool:
        """Whether alpha or c depend on the sequence; a constant router without pooling has no state."""
        return self.router is not None or self.down2 is not None

    def prompt_state(self, n: Tensor, prompt_mask: Tensor | None = None, token_mask: Tensor | None = None) -> Tensor:
        """``[alpha, c]`` of each sequence (Eq. 6, and c of Eq. 4).

        Args:
            n: ``(batch, tokens, d)``.
            prompt_mask: ``(batch, tokens)`` bool, True on image and question tokens, at least one per row; None if
                every token is one of them.
            token_mask: ``(batch, tokens)`` bool, True on all tokens but padding; a running mean is over these.

        Returns:
            ``(batch, 1, 2 + r)``, ``(batch, 1, 2)`` without c, ``(batch, tokens, 2 + r)`` with causal pooling,
            ``(batch, tokens, 2 + r + 1)``, at least in float32, with a running mean.
        """
        dtype = self.down1.weight.dtype
        if self.mix is not None:
            alpha = self.alpha().expand(len(n), 1, 2)
        if self.router is not None or (self.down2 is not None and not self.causal):
            if prompt_mask is None:
                nbar = n.mean(1, keepdim=True, dtype=torch.float32).to(dtype)
            else:  # masked_fill, not a product: a padded row may hold NaN
                total = n.masked_fill(~prompt_mask[..., None], 0).sum(1, keepdim=True, dtype=torch.float32)
                nbar = (total / prompt_mask.sum(1)[:, None, None]).to(dtype)
        if self.router is not None:
            alpha = (self.router(nbar) / self.temperature).softmax(-1)  # Eq. 6, (batch, 1, 2)
        if self.down2 is None:
            return alpha
        if not self.causal:
            return torch.cat([alpha, self.down2(nbar)], -1)  # c of Eq. 4, (batch, 1, r)
        mean, seen = self._causal_mean(n, token_mask if self.running else prompt_mask)
        c = self.down2(mean.to(dtype))
        found = torch.cat([alpha.expand(-1, c.shape[1], -1), c], -1)
        if not self.running:
            return found
        wide = torch.promote_types(dtype, torch.float32)  # bfloat16 counts to 256
        return torch.cat([found.to(wide), seen.to(wide)], -1)

    def alpha(self) -> Tensor:
        """The mixing weights of a constant router, ``(2,)``."""
        assert self.mix is not None
        return (self.mix / self.temperature).softmax(-1)

    @staticmethod
    def _causal_mean(n: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """For each token the mean of masked tokens up to it, ``(batch, tokens, d)`` in float32, and their number."""
        mask = torch.ones_like(n[..., 0], dtype=torch.bool) if mask is None else mask
        total = n.masked_fill(~mask[..., None], 0).cumsum(1, dtype=torch.float32)
        seen = mask.cumsum(1)[..., None]
        return total / seen.clamp(min=1), seen

    def next_state(self, n: Tensor, state: Tensor) -> Tensor:
        """The state of new tokens with a running mean; the state holds c and the count of tokens.

        Args:
            n: ``(batch, new tokens, d)``.
            state: the state of the last token before the new ones, ``(batch, 1, 2 + r + 1)``.

        Returns:
            ``(batch, new tokens, 2 + r + 1)``.
        """
        assert self.running
        assert self.down2 is not None
        new = self.down2(n.to(self.down2.weight.dtype))
        before, seen = state[..., 2:-1], state[..., -1:]
        count = seen + torch.arange(1, n.shape[1] + 1, device=n.device)[:, None]
        c = (before * seen + new.cumsum(1, dtype=state.dtype)) / count
        return torch.cat([state[..., :2].expand(-1, n.shape[1], -1), c, count], -1)

    def forward(self, n: Tensor, state: Tensor) -> Tensor:
        """p of Eq. 4-5, ``(batch, tokens, d)``, in the dtype of n.

        Args:
            n: ``(batch, tokens, d)``.
            state: the result of ``prompt_state``; if n comes after the prompt, that of the last prompt token.
        """
        h = self.down1(n.to(self.down1.weight.dtype))
        if self.down2 is not None:
            h = h + self.c(state)
        h = self.dropout(h * self.hidden_scale)  # Eq. 4, (batch, tokens, r)
        alpha = state[..., :2].to(h.dtype)
        p: Tensor = alpha[..., :1] * self.up1(h) + alpha[..., 1:] * self.up2(h)  # Eq. 5, (batch, tokens, d)
        return p.to(n.dtype)

    def c(self, state: Tensor) -> Tensor:
        """c of a state: the r numbers that Eq. 4 adds to h."""
        return state[..., 2 : 2 + self.down1.out_features].to(self.down1.weight.dtype)

    def macs(self, tokens: int) -> int:
        per_token = sum(linear.weight.numel() for linear in (self.down1, self.up1, self.up2))
        return self.statistics_macs(tokens) + tokens * per_token

    def statistics_macs(self, tokens: int) -> int:
        """The part of ``macs`` for alpha and c, which no fold removes: once per prompt, causal c once per token."""
        router = 0 if self.router is None else self.router.weight.numel()
        return router + (0 if self.down2 is None else (tokens if self.causal else 1) * self.down2.weight.numel())

    def decode_bytes(self) -> int:
        # a step after the prompt does not read the router, and reads the second down path only for a running mean
        read = [*self.down1.parameters(), *self.up1.parameters(), *self.up2.parameters()]
        if self.running and self.down2 is not None:
            read += self.down2.parameters()
        return sum(p.nbytes for p in read)

    def prompt_state_bytes(self) -> int:
        """Bytes of alpha and c that are stored while one sequence is decoded."""
        rank = 0 if self.down2 is None else self.down2.out_features
        if not self.reads_prompt:
            return 0
        return (2 + rank + 1) * 4 if self.running else (2 + rank) * self.down1.weight.element_size()


class SharedFold(nn.Module):
    """The form of a PIA that serves any batch: one set of weights for all sequences, two thin products per token.

    ``z = scale * n + up [alpha_1 h, alpha_1, alpha_2 h, alpha_2]`` with ``h = down n + bias + s c`` (Eq. 4, 5 and 7).
    The output scale, the up-biases and the hidden scale s are folded in, so few operations are left. This form corrects
    the input of the linear maps that follow, for 3 d r MACs per token. A correction of the outputs of gate and up would
    cost (d + 4 ff) r.

    Args:
        pia: the PIA, left untouched.
        norm_weight: g of the FFN that follows a skip PIA, None for an adapt PIA.
        dtype: of the maps that follow.
    """

    down: Tensor  # (r + 1, d); its last row is zero and its bias one, so that the up-biases are columns of up
    bias: Tensor  # (r + 1,)
    up: Tensor  # (d, 2 (r + 1))
    scale: Tensor | None  # (d,)

    @torch.no_grad()
    def __init__(self, pia: PIA, norm_weight: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        scale = None if norm_weight is None else norm_weight.clone()
        up = torch.cat([pia.up1.dense(), pia.up1.bias[None], pia.up2.dense(), pia.up2.bias[None]])
        tensors = {
            "down": F.pad(pia.hidden_scale * pia.down1.weight, (0, 0, 0, 1)).to(dtype),
            "bias": F.pad(pia.hidden_scale * pia.down1.bias, (0, 1), value=1.0).to(dtype),
            "up": (up if scale is None else up * scale).T.to(dtype).contiguous(),
            "scale": scale,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.rank, self.hidden_scale = (pia.down1.out_features if pia.down2 is not None else 0), pia.hidden_scale
        self.width = 2 + (self.rank + 1 if self.rank else 0)  # of the result of ``keep``

    def keep(self, state: Tensor) -> Tensor:
        """The part of the prompt state that every token needs: ``[alpha, bias + s c]``; without c, only alpha."""
        alpha = state[..., :2].to(self.bias.dtype)
        if not self.rank:
            return alpha
        c = self.hidden_scale * state[..., 2 : 2 + self.rank]
        return torch.cat([alpha, F.pad(c, (0, 1)).to(self.bias.dtype) + self.bias], -1)

    def forward(self, n: Tensor, kept: Tensor) -> Tensor:
        """z, the input of the linear maps that follow, ``(batch, tokens, d)``."""
        one = n.device.type == "cpu" and n.shape[:2].numel() == 1 and torch.compiler.is_compiling()
        narrow, wide = (one_token.narrow, one_token.wide) if one else (F.linear, F.linear)
        h = narrow(n.to(self.down.dtype), self.down) + (kept[..., 2:] if self.rank else self.bias)
        mixed = (kept[..., :2, None] * h[:, :, None]).flatten(2)
        plain = n if self.scale is None else self.scale * n
        return plain + wide(mixed, self.up)


class FoldedWeights(NamedTuple):
    """Linear maps with the PIA before them folded in (Eq. 8-13); ``out`` counts the outputs of all maps.

    Args:
        weight: W', ``(out, d)``.
        bias: b', ``(out,)``; if no c was given, b' without c.
        from_c: the change of b' for each number of c, ``(out, r)``.
    """

    weight: Tensor
    bias: Tensor
    from_c: Tensor


@torch.no_grad()
def fold_weights(
    linears: Sequence[nn.Linear],
    pia: PIA,
    alpha: Tensor,
    norm_weight: Tensor | None,
    c: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> FoldedWeights:
    """Folds a PIA into the linear maps after it: they read ``g * (n + p)``, their folds read n, with equal results.

    Eq. 8-13: ``W' = W diag(g) (I + (Wd1 U)^T)`` and
    ``b' = b + W diag(g) (U^T (bd1 + c) + alpha_1 bu1 + alpha_2 bu2)`` with ``U = s (alpha_1 Wu1 + alpha_2 Wu2)``,
    ``(r, d)``. The products are in low-rank order: 2 d r MACs per output row, not d^2.

    Args:
        linears: the original maps, left untouched.
        pia: the PIA before them.
        alpha: its mixing weights, ``(2,)``.
        norm_weight: g of the FFN for a skip PIA, None for an adapt PIA.
        c: c of one sequence, ``(r,)``, to fold c into the bias as well.
        dtype: dtype of the arithmetic, the PIA's by default; the results have the dtype of the maps.
    """
    dtype = dtype or pia.down1.weight.dtype
    up = pia.hidden_scale * (alpha[0] * pia.up1.dense() + alpha[1] * pia.up2.dense())  # U, (r, d)
    weight = torch.cat([linear.weight.to(dtype) for linear in linears])  # a copy, (out, d); it becomes W' in place
    if norm_weight is not None:
        weight *= norm_weight.to(dtype)
    from_h = weight @ up.T.to(dtype)  # W diag(g) U^T, (out, r)
    added = pia.down1.bias if c is None else pia.down1.bias + c
    bias = from_h @ added.to(dtype) + weight @ (alpha[0] * pia.up1.bias + alpha[1] * pia.up2.bias).to(dtype)
    own: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    torch.addmm(weight, from_h, pia.down1.weight.to(dtype), out=weight)
    final = linears[0].weight.dtype
    return FoldedWeights(weight.to(final), (bias + torch.cat(own)).to(final), from_h.to(final))


def naive_prompt_state(pia: PIA, n: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Reference for one sequence: alpha ``(2,)`` (Eq. 6) and c ``(r,)`` (Eq. 4), here the mean of projected tokens."""
    prompt = n[prompt_mask]
    if pia.router is not None:
        logits = prompt.mean(0) @ pia.router.weight.T + (0 if pia.router.bias is None else pia.router.bias)
    else:
        assert pia.mix is not None
        logits = 1.0 * pia.mix
    alpha = torch.exp(logits / pia.temperature) / torch.exp(logits / pia.temperature).sum()
    if pia.down2 is None:
        return alpha, torch.zeros_like(pia.down1.bias)
    return alpha, torch.stack([t @ pia.down2.weight.T + pia.down2.bias for t in prompt]).mean(0)


def naive_pia(pia: PIA, n: Tensor, prompt_mask: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Reference for one sequence ``(tokens, d)``: Eq. 4-6 token by token, without dropout."""
    alpha, c = naive_prompt_state(pia, n, prompt_mask)
    outputs = []
    for t, n_t in enumerate(n):
        if pia.causal:  # the statistics of the tokens up to t; there are none before the first prompt token
            read = token_mask if pia.running and token_mask is not None else prompt_mask
            seen = read & (torch.arange(len(n)) <= t)
            c = naive_prompt_state(pia, n, seen)[1] if seen.any() else pia.down2.bias  # type: ignore[union-attr]
        h_t = pia.hidden_scale * (n_t @ pia.down1.weight.T + pia.down1.bias + c)  # Eq. 4
        path_1 = h_t @ pia.up1.dense() + pia.up1.bias
        path_2 = h_t @ pia.up2.dense() + pia.up2.bias
        outputs.append(alpha[0] * path_1 + alpha[1] * path_2)  # Eq. 5
    return torch.stack(outputs)


def naive_fold(linear: nn.Linear, pia: PIA, alpha: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Reference for the fold, Eq. 8-13: W' and b' with the full d x d matrix (quadratic in d; only for tests)."""
    wd1, bd1 = pia.hidden_scale * pia.down1.weight.T, pia.hidden_scale * (pia.down1.bias + c)
    u = alpha[0] * pia.up1.dense() + alpha[1] * pia.up2.dense()
    wg = linear.weight @ torch.diag(g)
    b = torch.zeros_like(wg[:, 0]) if linear.bias is None else linear.bias
    identity = torch.eye(wd1.shape[0], dtype=wd1.dtype)
    return wg @ (identity + (wd1 @ u).T), b + wg @ (u.T @ bd1 + alpha[0] * pia.up1.bias + alpha[1] * pia.up2.bias)
