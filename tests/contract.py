"""Every method with a tiny configuration: what the tests of the contract attach, on which model and batch."""

import torch
from decoding import answered, answers
from families import build, build_meter, meter_batch, prompts

import eas
from eas import METHODS
from eas.attachment.save import adapter_state
from eas.attachment.state import candidates

METER = "MeterForVisualQuestionAnswering"  # an encoder, which decodes nothing
PIA = {"skip_rank": 4, "adapt_rank": 2}
CONFIGS = {
    "eas": {"num_skip": 2, **PIA},
    "eas, released": {"num_skip": 2, **PIA, "preset": "released", "dropout": 0.0},
    "eas, ffn": {"num_skip": 2, **PIA, "candidates": "ffn"},
    "eas, either": {"num_skip": 3, **PIA, "candidates": "either"},
    "eas, causal": {"num_skip": 2, **PIA, "pooling": "causal"},
    "eas, running": {"num_skip": 2, **PIA, "router": "constant", "pooling": "causal", "decode_pooling": "running"},
    "eas, constant": {"num_skip": 2, **PIA, "router": "constant", "pooling": "none"},
    "eas, lora": {"num_skip": 2, **PIA, "router": "constant", "adapt": "lora"},
    "das": {"num_skip": 2, **PIA},
    "das, routed": {"num_skip": 2, **PIA, "routed": True},
    "drop": {"num_skip": 2, "rank": 2},
    "drop, either": {"num_skip": 3, "rank": 2, "candidates": "either"},
    "full": {},
    "head": {},
    "lora": {"rank": 2},
    "adapter": {"rank": 3},
    "adapter, both": {"rank": 3, "placement": "both"},
    "parallel_adapter": {"rank": 8},
    "lavin_adapter": {"rank": 2},
    "prefix": {"num_tokens": 3},
    "prefix, MLP": {"num_tokens": 3, "reparameterise": 6},
    "shallow_prompt": {"num_tokens": 3},
    "deep_prompt": {"num_tokens": 3},
    "llama_adapter": {"num_tokens": 3},
    "mam": {"num_tokens": 3, "rank": 8},
}
SHARED = ("eas", "drop", "full", "head", "lora", "prefix", "shallow_prompt", "deep_prompt")
METER_CONFIGS = {
    label: {key: 4 if key == "num_skip" else value for key, value in CONFIGS[label].items()} for label in SHARED
} | {
    "eas, grouped": {"num_skip": 4, **PIA, "router": "constant", "pooling": "none", "up_groups": 2},
    "das, wide": {"num_skip": 2, "skip_rank": 8, "adapt_rank": 16},  # a narrow ReLU may be zero for all tokens
    "drop, layers": {"num_skip": 2, "rank": 2, "candidates": "layer"},
    "adapter, wide": {"rank": 16, "placement": "both"},
    "parallel_adapter, both": {"rank": 16, "placement": "both"},
    "mam, short": {"num_tokens": 2, "rank": 16, "scale": 2.0},
}
SETS = {"either": (0, 2, 5), "ffn": (1, 2)}  # others skip 0 and 2
METER_SETS = {"mha": (1, 2, 5, 6), "layer": (0, 3)}  # of both modalities, self and cross


def method(label):
    return label.split(",")[0]


def config_of(label, family=""):
    configs = METER_CONFIGS if family == METER else CONFIGS  # METER's skip sets have other sizes
    return METHODS[method(label)].config(**configs[label])


def base_of(family, **options):
    return build_meter("vqa", **options) if family == METER else build(family, **options)


def tuned(family, label, pruned=False, **build_options):
    """An attached tiny model under its skip set, with trained weights that show in the logits."""
    return with_weights(base_of(family, **build_options), config_of(label, family), pruned)


def with_weights(base, config, pruned=False):
    torch.manual_seed(1)
    model = eas.attach(base, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_state(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    select_as(model)
    if pruned and candidates(model):
        eas.prune(model)
    return model.eval()


def select_as(model):
    if candidates(model):
        sets = SETS if model.can_generate() else METER_SETS
        eas.select(model, sets.get(model.eas.config.candidates, (0, 2)))


def batch_of(family):
    if family == METER:
        return meter_batch()
    return {**answered(prompts(family), answers(2))[0], "use_cache": False}


def inputs_of(family, *lengths, dtype=torch.float32):
    if family == METER:
        return {key: value for key, value in meter_batch(dtype=dtype).items() if key != "labels"}
    return prompts(family, *lengths)
