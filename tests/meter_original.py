"""METER as its authors define it: the keys and shapes of its checkpoints, and its forward pass written out plainly.

From github.com/zdou0830/METER: meter_module.py, bert_model.py (BertCrossLayer), clip_model.py, heads.py, and Hugging
Face's RobertaModel of that time, whose position ids were saved.
"""

import torch
import torch.nn.functional as F

BASE = {"width": 768, "towers": (12, 11), "layers": 6, "vocabulary": 50265, "patch": 16, "grid": 18, "positions": 514}
TINY = {"width": 128, "towers": (2, 2), "layers": 2, "vocabulary": 60, "patch": 8, "grid": 4, "positions": 40}
HEAD = 64


def _linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name, width):
    maps = [_linear(f"{name}.self.{kind}", width, width) for kind in ("query", "key", "value")]
    maps += [_linear(f"{name}.output.dense", width, width), _norm(f"{name}.output.LayerNorm", width)]
    return {key: shape for part in maps for key, shape in part.items()}


def _bert_layer(name, width, attentions):
    shapes = {}
    for attention in attentions:
        shapes |= _attention(f"{name}.{attention}", width)
    shapes |= _linear(f"{name}.intermediate.dense", width, 4 * width)
    return shapes | _linear(f"{name}.output.dense", 4 * width, width) | _norm(f"{name}.output.LayerNorm", width)


def shapes(task, width, towers, layers, vocabulary, patch, grid, positions, answers=3129):
    """``{key: shape}`` of the checkpoint of a task: pretraining, vqa, nlvr2, retrieval."""
    found = _linear("cross_modal_text_transform", width, width) | _linear("cross_modal_image_transform", width, width)
    found["token_type_embeddings.weight"] = (3 if task == "nlvr2" else 2, width)
    clip = "vit_model.visual"
    found |= {"vit_model.positional_embedding": (77, 512), **_norm("vit_model.ln_final", 512)}
    found |= {
        f"{clip}.class_embedding": (width,),
        f"{clip}.positional_embedding": (grid**2 + 1, width),
        f"{clip}.conv1.weight": (width, 3, patch, patch),
    }
    found |= _norm(f"{clip}.ln_pre", width) | _norm(f"{clip}.ln_post", width)
    for i in range(towers[1]):
        block = f"{clip}.transformer.resblocks.{i}"
        found |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        found |= _linear(f"{block}.attn.out_proj", width, width)
        found |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
        found |= _linear(f"{block}.mlp.c_fc", width, 4 * width) | _linear(f"{block}.mlp.c_proj", 4 * width, width)
    text = "text_transformer"
    found |= {
        f"{text}.embeddings.position_ids": (1, positions),
        f"{text}.embeddings.word_embeddings.weight": (vocabulary, width),
        f"{text}.embeddings.position_embeddings.weight": (positions, width),
        f"{text}.embeddings.token_type_embeddings.weight": (1, width),
    }
    found |= _norm(f"{text}.embeddings.LayerNorm", width) | _linear(f"{text}.pooler.dense", width, width)
    for i in range(towers[0]):
        found |= _bert_layer(f"{text}.encoder.layer.{i}", width, ["attention"])
    for modality in ("image", "text"):
        for i in range(layers):
            found |= _bert_layer(f"cross_modal_{modality}_layers.{i}", width, ["attention", "crossattention"])
        found |= _linear(f"cross_modal_{modality}_pooler.dense", width, width)
    if task == "pretraining":
        found |= _linear("mlm_score.transform.dense", width, width) | _norm("mlm_score.transform.LayerNorm", width)
        found |= {"mlm_score.decoder.weight": (vocabulary, width), "mlm_score.bias": (vocabulary,)}
    if task in ("pretraining", "retrieval"):
        found |= _linear("itm_score.fc", 2 * width, 2)
    if task == "retrieval":
        found |= _linear("rank_output", 2 * width, 1)
    if task in ("vqa", "nlvr2"):
        inputs, outputs = (2 * width, answers) if task == "vqa" else (4 * width, 2)
        found |= _linear(f"{task}_classifier.0", inputs, 2 * width) | _norm(f"{task}_classifier.1", 2 * width)
        found |= _linear(f"{task}_classifier.3", 2 * width, outputs)
    return found


def checkpoint(task, seed=0, **sizes):
    """A random state dict; norms around one, so that nothing is hidden by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes(task, **{**TINY, "answers": 7, **sizes}).items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(shape[1])[None]
            continue
        norm = any(part in key for part in ("LayerNorm.weight", "ln_", "classifier.1.weight")) and key.endswith(
            "weight"
        )
        state[key] = 0.15 * torch.randn(shape, generator=generator) + float(norm)
    return state


def _split(x):
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def _mha(q, k, v, mask, keep=1.0):
    scores = _split(q) @ _split(k).transpose(-1, -2) / HEAD**0.5
    scores = scores if mask is None else scores + (1.0 - mask.float())[:, None, None] * -10000.0
    return ((scores.softmax(-1) * keep) @ _split(v)).transpose(1, 2).flatten(2)


def _layer(w, name, x, mask, eps, keep, other=None, other_mask=None):
    """A RoBERTa layer, or with ``other`` METER's BertCrossLayer; ``keep`` stands where dropout does."""

    def lin(part, x):
        return F.linear(x, w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"])

    def ln(part, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"], eps)

    def attend(part, x, keys, mask):
        q, k, v = lin(f"{part}.self.query", x), lin(f"{part}.self.key", keys), lin(f"{part}.self.value", keys)
        seen = lin(f"{part}.output.dense", _mha(q, k, v, mask, keep))
        return ln(f"{part}.output.LayerNorm", x + seen * keep)

    x = attend("attention", x, x, mask)
    if other is not None:
        x = attend("crossattention", x, other, other_mask)
    hidden = lin("intermediate.dense", x)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))  # GELU, not its tanh form
    return ln("output.LayerNorm", x + lin("output.dense", hidden) * keep)


def encode_image(w, pixels):
    """CLIP's tokens after ``ln_post``."""
    name = "vit_model.visual"

    def ln(part, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{part}.weight"], w[f"{part}.bias"], 1e-5)

    conv = w[f"{name}.conv1.weight"]
    x = F.conv2d(pixels, conv, stride=conv.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w[f"{name}.class_embedding"].expand(len(x), 1, -1), x], 1) + w[f"{name}.positional_embedding"]
    x = ln(f"{name}.ln_pre", x)
    for i in range(TINY["towers"][1]):
        block = f"{name}.transformer.resblocks.{i}"
        q, k, v = F.linear(
            ln(f"{block}.ln_1", x), w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        ).chunk(3, -1)
        out = f"{block}.attn.out_proj"
        x = x + F.linear(_mha(q, k, v, None), w[f"{out}.weight"], w[f"{out}.bias"])
        h = F.linear(ln(f"{block}.ln_2", x), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"])
        h = h * torch.sigmoid(1.702 * h)
        x = x + F.linear(h, w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
    return ln(f"{name}.ln_post", x)


def encode_text(w, ids, mask, keep=1.0):
    """RoBERTa's tokens; positions count from 2, padding (id 1) has position 1."""
    name = "text_transformer.embeddings"
    words = (ids != 1).long()
    positions = words.cumsum(1) * words + 1
    x = w[f"{name}.word_embeddings.weight"][ids] + w[f"{name}.position_embeddings.weight"][positions]
    x = x + w[f"{name}.token_type_embeddings.weight"][0]
    x = F.layer_norm(x, x.shape[-1:], w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"], 1e-5) * keep
    for i in range(TINY["towers"][0]):
        x = _layer(w, f"text_transformer.encoder.layer.{i}", x, mask, 1e-5, keep)
    return x


def infer(w, ids, mask, pixels, image_type=1, keep=1.0):
    """METER's ``infer``: text tokens, image tokens, pooled features. There is no dropout in its image tower."""

    def lin(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    types = w["token_type_embeddings.weight"]
    x = lin("cross_modal_text_transform", encode_text(w, ids, mask, keep)) + types[0]
    y = lin("cross_modal_image_transform", encode_image(w, pixels)) + types[image_type]
    whole = torch.ones(y.shape[:2])
    for i in range(TINY["layers"]):
        x, y = (  # both read what came in
            _layer(w, f"cross_modal_text_layers.{i}", x, mask, 1e-12, keep, y, whole),
            _layer(w, f"cross_modal_image_layers.{i}", y, whole, 1e-12, keep, x, mask),
        )
    pools = [lin("cross_modal_text_pooler.dense", x[:, 0]), lin("cross_modal_image_pooler.dense", y[:, 0])]
    return x, y, torch.cat(pools, -1).tanh()


def classify(w, name, features):
    """The classifiers of VQA and NLVR2."""
    hidden = F.linear(features, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
    hidden = F.layer_norm(hidden, hidden.shape[-1:], w[f"{name}.1.weight"], w[f"{name}.1.bias"], 1e-5)
    return F.linear(F.gelu(hidden), w[f"{name}.3.weight"], w[f"{name}.3.bias"])
