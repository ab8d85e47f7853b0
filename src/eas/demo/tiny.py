"""The tiny LLaVA: a real `LlavaForConditionalGeneration` of four million parameters that sees the world of `scenes`.

`load_tiny` reads the pretrained folder that ships with the package; the `build` functions make it from nothing.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from eas.data.scenes import CELL, CODES, COLOURS, COUNTS, GRID, ORDINALS, SHAPES, SIDES, SIZES, YES_NO
from eas.data.textures import TEXTURES
from eas.models.folder import TINY_DIR

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")

PLAIN_WORDS = """
? ! . , : ; ' " - ( ) / repeat
question answer image picture a an the this that these those it its they them their he she
is are was be been being has have had do does did can could will would should may not no none nothing and or but if
then than as so because of in on at to from by with without for into onto out off up down over under above below
between among around near next beside behind front inside outside across along against through toward away
which what where when who whose why how many much more most less least fewer few several multiple some any all both
each every either neither another other others same different similar exactly only just also too very about almost
single pair double half odd even equal greater smaller larger bigger biggest smallest largest tall taller tallest
short shorter shortest long longer wide high low big tiny little thin thick full empty open closed
object objects item items thing things shape shapes color colors colour colours colored size sizes texture pattern
number count total group set row rows column columns line stack stacks stacked tower towers block blocks box boxes
cube cubes brick base bottom top middle center corner corners side sides edge edges wall walls floor roof
circles squares triangles crosses diamonds rings star stars rectangle
touch touches touching attached close closely far apart together alone separate contain contains containing
called named name describe look looks shown show shows seen see there here s t
gray grey brown pink cyan magenta gold silver dark light bright
person people man woman boy girl child dog dogs cat cats bird birds animal animals car tree water table chair food
hand hands head eyes face standing sitting holding wearing
true false correct wrong option choose
b c d e f g h
five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9 10
fifth sixth last once twice
"""

# One turn reads "<image> question : ... answer : ... </s>"; the tokenizer adds the <s>.
CHAT_TEMPLATE = """
{%- macro say(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{{ content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
answer :{% generation %}{{ ' ' + say(message['content']) + ' </s> ' }}{% endgeneration %}
{%- else -%}
{%- if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image> ' }}{%- endfor -%}
{%- endif -%}
{{ 'question : ' + say(message['content']) + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}answer :{%- endif -%}
"""


def vocabulary() -> list[str]:
    """Every word of the world and of plain statements about pictures, the special tokens first."""
    world = [*COLOURS, *SHAPES, *SIZES, *ORDINALS, *COUNTS, *SIDES, *CODES, *TEXTURES, *YES_NO]
    return list(dict.fromkeys([*SPECIAL, *world, *PLAIN_WORDS.split()]))


def build_processor() -> LlavaProcessor:
    """A lower-casing word tokenizer, an image processor that resizes to 48x48, and the chat template."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.token_to_id("<s>"))]
    )
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    side = GRID * CELL
    images = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaConfig:
    """Twelve decoder layers of width 128 over sixteen visual tokens from a three-layer CLIP tower of width 96."""
    words = vocabulary()
    ids = {
        f"{name}_token_id": words.index(token) for name, token in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    }
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.04,
        **ids,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=GRID * CELL,
        patch_size=CELL,
        projection_dim=96,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
        **ids,
    )


def load_tiny() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The shipped model, in evaluation mode, and its processor."""
    return AutoModelForImageTextToText.from_pretrained(TINY_DIR).eval(), AutoProcessor.from_pretrained(TINY_DIR)
