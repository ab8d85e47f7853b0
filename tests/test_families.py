"""Model families of one's own."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from families import TEXT, logits, prompts, randomise
from transformers import AutoConfig, AutoModelForCausalLM

import eas
from eas.attachment.standalone import STANDALONE
from eas.hf.versions import TransformersChangedError
from eas.models import anatomy

torch.set_num_threads(1)
EAS = eas.EASConfig(num_skip=2, skip_rank=4, adapt_rank=2)
LLAMA = "LlamaForCausalLM"


@pytest.fixture(autouse=True)
def tables():
    """What a test registers is gone after it."""
    before = [(table, dict(table)) for table in (anatomy.FAMILIES, anatomy.OWN, anatomy.TEXT_MODELS, STANDALONE)]
    yield
    for table, rows in before:  # in their order
        table.clear()
        table.update(rows)


class OwnConfig(tf.LlamaConfig):
    model_type = "own_llama"


class OwnModel(tf.LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(tf.LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()


def own():
    torch.manual_seed(0)
    model = OwnForCausalLM(OwnConfig(**TEXT)).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def test_a_registered_class_goes_all_the_way(tmp_path):
    with pytest.raises(eas.UnsupportedModelError, match=r"OwnForCausalLM is not supported; .* are nearest by name"):
        eas.attach(own(), EAS)
    eas.register_family(OwnForCausalLM)
    eas.register_family(OwnForCausalLM)  # a second time nothing happens
    AutoConfig.register("own_llama", OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)

    inputs, base = prompts(LLAMA), logits(own(), prompts(LLAMA))
    model = eas.attach(own(), EAS)
    assert torch.equal(logits(model, inputs), base)
    randomise(model)
    eas.select(model, [0, 2])
    own().save_pretrained(tmp_path / "base")
    eas.save(model, tmp_path / "adapter")
    opened = eas.load(tmp_path / "base", tmp_path / "adapter")
    assert torch.equal(logits(opened, inputs), logits(model, inputs))
    eas.prune(model)
    eas.save_standalone(model, tmp_path / "standalone")
    whole = eas.load(tmp_path / "standalone")
    assert (type(whole).__name__, whole.config.model_type) == ("OwnForCausalLM", "eas_own_llama")
    assert torch.equal(logits(whole, inputs), logits(model, inputs))
    eas.fold(whole)
    torch.testing.assert_close(logits(whole, inputs), logits(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_class_of_transformers_that_is_in_no_table():
    eas.register_family(tf.HeliumForCausalLM)
    torch.manual_seed(0)
    model = tf.HeliumForCausalLM(tf.HeliumConfig(**TEXT, head_dim=8)).eval()
    base = logits(model, prompts(LLAMA))
    assert torch.equal(logits(eas.attach(model, EAS), prompts(LLAMA)), base)


OTHERS = [
    (tf.Gemma3ForCausalLM, "Gemma3TextModel", "pre_feedforward_layernorm, post_feedforward_layernorm"),
    (tf.GraniteForCausalLM, "GraniteModel", "residual_multiplier"),
    (tf.GemmaForCausalLM, "GemmaModel", r"GemmaRMSNorm, which is 1 \+ weight"),
    (tf.Phi3ForCausalLM, "Phi3Model", r"has no model\.layers\.0\.self_attn\.q_proj"),
    (tf.CohereForCausalLM, "CohereModel", r"has no model\.layers\.0\.post_attention_layernorm"),
    (tf.Olmo2ForCausalLM, "Olmo2Model", r"has no model\.layers\.0\.input_layernorm"),
]


@pytest.mark.parametrize(("cls", "like", "words"), OTHERS, ids=[row[1] for row in OTHERS])
def test_the_right_terms_pass_and_a_plain_line_names_what_is_missing(cls, like, words):
    terms = anatomy.TEXT_MODELS[like]
    del anatomy.TEXT_MODELS[like]
    kind = type(f"Own{like}Config", (cls.config_class,), {"model_type": f"own_{like.lower()}", "__module__": __name__})
    own = type(f"Own{cls.__name__}", (cls,), {"config_class": kind, "__module__": __name__})
    config = kind(residual_multiplier=0.3) if like == "GraniteModel" else kind()
    refused(eas.UnsupportedModelError, words, own, config=config)
    eas.register_family(own, config=config, like=terms)
    assert anatomy.TEXT_MODELS[like] is terms


def refused(kind, words, *arguments, **options):
    before = dict(anatomy.FAMILIES), dict(anatomy.OWN), dict(anatomy.TEXT_MODELS), dict(STANDALONE)
    with pytest.raises(kind, match=words):
        eas.register_family(*arguments, **options)
    assert before == (anatomy.FAMILIES, anatomy.OWN, anatomy.TEXT_MODELS, STANDALONE)


def test_what_is_not_built_like_llama_is_refused():
    unsupported = eas.UnsupportedModelError
    refused(unsupported, r"GPT2LMHeadModel has no model; its language model must have layers", tf.GPT2LMHeadModel)
    refused(unsupported, r"GPT2LMHeadModel has no transformer\.layers\.0; ", tf.GPT2LMHeadModel, "transformer")
    refused(
        ValueError,
        "like = 'Gemma9': no such language model is supported; use one of LlamaModel, ",
        OwnForCausalLM,
        like="Gemma9",
    )


def test_what_would_be_taken_for_another_class_is_refused():
    class Same(tf.LlamaForCausalLM):
        """Of Llama's own configuration."""

    refused(ValueError, "Same: model_type 'llama' is another family's; give the configuration one of its own", Same)
    other = type("LlamaForCausalLM", (OwnForCausalLM,), {})
    refused(ValueError, "another LlamaForCausalLM is supported; give the class a name of its own", other)


def test_a_class_that_decodes_wrongly_is_refused(monkeypatch):
    monkeypatch.setattr("eas.attachment.families.twin_deviation", lambda *_: 0.01)
    refused(eas.UnsupportedModelError, r"OwnForCausalLM decodes wrongly .* by 1\.0e-02", OwnForCausalLM)
    monkeypatch.setattr(OwnModel, "forward", lambda *_, **__: 1 / 0)
    refused(TransformersChangedError, "a tiny random OwnForCausalLM does not run", OwnForCausalLM)
