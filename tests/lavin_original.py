"""LaVIN as its authors define it: names and shapes of its checkpoints, and its forward pass written out plainly.

From github.com/luogen1996/LaVIN: lavin/model.py, lavin/eval_model.py, lavin/mm_adapter.py, clip/model.py,
util/datasets.py, and LLaMA's own model.py. Nothing is in half precision here. The tower's weights bear the names they
have in transformers' CLIP, where they come from.
"""

import torch
import torch.nn.functional as F
from transformers import LlamaTokenizer

LLAMA_7B = {"dim": 4096, "layers": 32, "ff": 11008, "vocabulary": 32000, "head": 128}
LLAMA_13B = {"dim": 5120, "layers": 40, "ff": 13824, "vocabulary": 32000, "head": 128}
VIT_L_14 = {"width": 1024, "blocks": 24, "patch": 14, "grid": 16, "text": 768, "text_blocks": 12, "words": 49408}
TINY_LLAMA = {"dim": 32, "layers": 3, "ff": 48, "vocabulary": 400, "head": 8}
TINY_VIT = {"width": 32, "blocks": 8, "patch": 4, "grid": 2, "text": 16, "text_blocks": 1, "words": 30}


def letters(**options):
    """A tokenizer of LLaMA's kind with letters, bytes and two merges: 356 tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *map(chr, range(33, 127)), "▁", "an", "Im"]
    return LlamaTokenizer({token: i for i, token in enumerate(tokens)}, [("a", "n"), ("I", "m")], **options)


def llama_shapes(dim, layers, ff, vocabulary, head):
    """``consolidated.00.pth`` of a LLaMA that was saved on one device."""
    found = {
        "tok_embeddings.weight": (vocabulary, dim),
        "norm.weight": (dim,),
        "output.weight": (vocabulary, dim),
        "rope.freqs": (head // 2,),
    }
    for i in range(layers):
        for name, shape in {
            "attention.wq": (dim, dim),
            "attention.wk": (dim, dim),
            "attention.wv": (dim, dim),
            "attention.wo": (dim, dim),
            "feed_forward.w1": (ff, dim),
            "feed_forward.w2": (dim, ff),
            "feed_forward.w3": (ff, dim),
            "attention_norm": (dim,),
            "ffn_norm": (dim,),
        }.items():
            found[f"layers.{i}.{name}.weight"] = shape
    return found


def shards(state, count):
    """The same as ``count`` files of tensor parallelism."""
    rows = ("output.weight", "wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight")
    columns = ("tok_embeddings.weight", "wo.weight", "w2.weight")
    split = {}
    for key, weight in state.items():
        if key.endswith(rows) or key.endswith(columns):
            split[key] = weight.chunk(count, 0 if key.endswith(rows) else 1)
        else:
            split[key] = (weight,) * count
    return [{key: parts[i].clone() for key, parts in split.items()} for i in range(count)]


def _linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_block(name, width):
    found = _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found |= _linear(f"{name}.self_attn.{part}", width, width)
    return found | _linear(f"{name}.mlp.fc1", width, 4 * width) | _linear(f"{name}.mlp.fc2", 4 * width, width)


def clip_shapes(width, blocks, patch, grid, text, text_blocks, words):
    """``model.safetensors`` of a CLIP in transformers' form, with its text side."""
    found = {
        "logit_scale": (),
        "text_projection.weight": (text, text),
        "visual_projection.weight": (text, width),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.position_embedding.weight": (77, text),
        "text_model.embeddings.token_embedding.weight": (words, text),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (grid**2 + 1, width),
        "vision_model.embeddings.position_ids": (1, grid**2 + 1),
    }
    found |= _norm("text_model.final_layer_norm", text)
    found |= _norm("vision_model.pre_layrnorm", width) | _norm("vision_model.post_layernorm", width)
    for i in range(text_blocks):
        found |= _clip_block(f"text_model.encoder.layers.{i}", text)
    for i in range(blocks):
        found |= _clip_block(f"vision_model.encoder.layers.{i}", width)
    return found


def _adapter(name, dim, rank=8, groups=2):
    found = {f"{name}.conv_A.weight": (rank, dim, 1), f"{name}.conv_A.bias": (rank,)}
    for up in ("conv_B", "conv_D"):
        found |= {f"{name}.{up}.weight": (dim, rank // groups, 1), f"{name}.{up}.bias": (dim,)}
    return found | _linear(f"{name}.expert_weights", dim, 2)


def lavin_shapes(dim, layers, width, blocks, hidden=128, rank=8):
    """What LaVIN's ``checkpoint-19.pth`` has under "model": all whose name has "adapter" in it, as DDP names it."""
    found = {"module.adapter_modality_embedding.weight": (2, dim)}
    found |= _linear("module.adapter_proj.conv_A", width, hidden) | _linear("module.adapter_proj.conv_B", hidden, dim)
    for i in range(layers):
        found |= _adapter(f"module.layers.{i}.adapter_attn", dim, rank)
    for i in range(blocks):
        found |= _adapter(f"module.backbone.visual.transformer.resblocks.{i}.adapter_attn", width, rank)
    return found


def on_meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def random_state(shapes, seed):
    """Weights under which everything shows in the output: norms about one, the rest normal."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=g)
        if len(shape) == 1 and "norm" in key and key.endswith("weight"):
            state[key] = 1 + 0.2 * noise
        elif key.endswith("position_ids"):
            state[key] = torch.arange(shape[1])[None]
        else:
            state[key] = noise * (shape[1] ** -0.5 if len(shape) > 1 and "embed" not in key else 0.3)
    return state


def route_and_adapt(state, name, x, routed_on, temperature=10.0, groups=2, scale=1.0, keep=1.0):
    """RepAdapter_Router: ``x`` is ``(tokens, d)``, ``routed_on`` ``(tokens or 1, d)``; ``keep`` stands for dropout."""

    def conv(part, y):
        weight, bias = state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"]
        return F.conv1d(y.T[None], weight, bias, groups=groups if part != "conv_A" else 1)[0].T

    logits = F.linear(routed_on, state[f"{name}.expert_weights.weight"], state[f"{name}.expert_weights.bias"])
    weights = torch.softmax(logits / temperature, -1)
    h = conv("conv_A", x) * keep
    return conv("conv_B", h) * scale * weights[:, :1] + conv("conv_D", h) * scale * weights[:, 1:] + x


def visual_tokens(clip, lavin, image, size, **adapter):
    """``encode_image`` and ``adapter_proj`` of one image ``(3, height, width)``: ``(blocks / 4, dim)``."""
    v, width, patch = "vision_model", size["width"], size["patch"]

    def norm(name, x):
        return F.layer_norm(x, (width,), clip[f"{name}.weight"], clip[f"{name}.bias"], 1e-5)

    def linear(name, x):
        return F.linear(x, clip[f"{name}.weight"], clip[f"{name}.bias"])

    patches = F.conv2d(image[None], clip[f"{v}.embeddings.patch_embedding.weight"], stride=patch)[0].flatten(1).T
    x = torch.cat([clip[f"{v}.embeddings.class_embedding"][None], patches])
    x = norm(f"{v}.pre_layrnorm", x + clip[f"{v}.embeddings.position_embedding.weight"])
    heads, kept = size["heads"], []
    for i in range(size["blocks"]):
        block, n = f"{v}.encoder.layers.{i}", norm(f"{v}.encoder.layers.{i}.layer_norm1", x)
        # the adapter gets (tokens, batch, d) and takes [:, 0]: the tokens of the first image
        name = f"module.backbone.visual.transformer.resblocks.{i}.adapter_attn"
        n = route_and_adapt(lavin, name, n, n, **adapter)
        q, k, w = (
            linear(f"{block}.self_attn.{part}_proj", n).view(len(n), heads, -1).transpose(0, 1) for part in "qkv"
        )
        seen = torch.softmax(q @ k.transpose(1, 2) / (width // heads) ** 0.5, -1) @ w
        x = x + linear(f"{block}.self_attn.out_proj", seen.transpose(0, 1).flatten(1))
        h = linear(f"{block}.mlp.fc1", norm(f"{block}.layer_norm2", x))
        x = x + linear(f"{block}.mlp.fc2", h * torch.sigmoid(1.702 * h))
        if (i + 1) % 4 == 0:
            kept.append(x[0])
    h = F.linear(
        torch.stack(kept), lavin["module.adapter_proj.conv_A.weight"], lavin["module.adapter_proj.conv_A.bias"]
    )
    h = F.silu(h)
    return F.linear(h, lavin["module.adapter_proj.conv_B.weight"], lavin["module.adapter_proj.conv_B.bias"])


def logits(llama, lavin, tokens, prefix, visual, size, **adapter):
    """``Transformer.forward`` of one row, up to its loss: ``(tokens, vocabulary)`` without the modality token's.

    Args:
        llama: whole state dict.
        lavin: the checkpoint's "model".
        tokens: ``<s>`` and the ids of prompt and answer.
        prefix: ids of "Image: " or "Image: N/A".
        visual: ``(visual tokens, dim)``, or None without an image.
        size: as `TINY_LLAMA`.
        adapter: ``temperature``, ``scale`` and ``keep``.
    """
    embed = llama["tok_embeddings.weight"]
    modality = lavin["module.adapter_modality_embedding.weight"][1 if visual is not None else 0]
    image = [] if visual is None else [visual]
    h = torch.cat([modality[None], embed[tokens[:1]], embed[prefix], *image, embed[tokens[1:]]])
    count, head = len(h), size["head"]
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, head, 2).float() / head)
    turn = torch.polar(torch.ones(count, head // 2), torch.outer(torch.arange(count).float(), frequencies))
    mask = torch.full((count, count), float("-inf")).triu(1)
    mask[1:, 0] = float("-inf")

    def norm(name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * llama[f"{name}.weight"]

    def rotated(x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2)

    for i in range(size["layers"]):
        n = norm(f"layers.{i}.attention_norm", h)
        n = route_and_adapt(lavin, f"module.layers.{i}.adapter_attn", n, n[:1], **adapter)
        weights = {name: llama[f"layers.{i}.{name}.weight"] for name in _MAPS}
        q, k, v = ((n @ weights[f"attention.w{part}"].T).view(count, -1, head) for part in "qkv")
        scores = torch.einsum("qhd,khd->hqk", rotated(q), rotated(k)) / head**0.5 + mask
        h = h + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ weights["attention.wo"].T
        n = norm(f"layers.{i}.ffn_norm", h)
        gated = F.silu(n @ weights["feed_forward.w1"].T) * (n @ weights["feed_forward.w3"].T)
        h = h + gated @ weights["feed_forward.w2"].T
    return (norm("norm", h) @ llama["output.weight"].T)[1:]


_MAPS = [*(f"attention.w{part}" for part in "qkvo"), *(f"feed_forward.w{part}" for part in "123")]
