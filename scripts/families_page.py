"""Writes the tables of docs/families.md from the tables of the code; a test holds the page current.

python scripts/families_page.py
"""

from __future__ import annotations

from pathlib import Path

from eas.exporting.limits import LLAMA
from eas.exporting.vllm import TEXTS as VLLM
from eas.measure.vision import VISION_TOWERS
from eas.models.anatomy import FAMILIES, REFUSED
from eas.models.structure import TEXT_MODELS, TextModel

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
MARKS = "<!-- {} -->", "<!-- end of {} -->"
SEES = [name for name, paths in FAMILIES.items() if len(paths) > 1 or name.endswith("ConditionalGeneration")]
EXPERTS = {
    "Qwen3MoeModel",
    "MixtralModel",
    "Qwen3VLMoeTextModel",
    "Qwen3OmniMoeThinkerTextModel",
    "Qwen3_5MoeTextModel",
    "Glm4vMoeTextModel",
    "Llama4TextModel",
}
CANDIDATES = {
    "Qwen3_5TextModel": "layers with full attention (every fourth)",
    "Qwen3_5MoeTextModel": "layers with full attention (every fourth)",
    "Lfm2Model": "layers with attention",
    "MllamaTextModel": "layers without cross attention, but for the first",
    "Gemma4UnifiedTextModel": "layers that share no keys and values",
    "Gemma4TextModel": "layers that share no keys and values",
}
PROMPTS = {"tokens": "all", "keys": "`prefix`, `mam`", "none": "none"}


def classes() -> list[str]:
    """The classes that read text in one sentence, and a row for each of the others."""
    text = ", ".join(f"`{name}`" for name in FAMILIES if name not in SEES)
    rows = [f"Text: {text}.", "", "Text and images:", ""]
    rows += [
        "| class | projector that is trained | `eas.count` counts its images |",
        "|" + 3 * "---|",
    ]
    for name in SEES:
        projector = "yes" if len(FAMILIES[name]) > 1 else "none"
        counted = "yes" if name in VISION_TOWERS else "no"
        rows.append(f"| `{name}` | {projector} | {counted} |")
    return rows


def terms(built: TextModel) -> str:
    """How the blocks differ from Llama's, in words."""
    mha, ffn = built.mha, built.ffn
    words = []
    if built.parallel:
        words.append("attention and FFN in parallel")
    if mha.norm is None:
        words.append("norms behind attention and FFN only")
    elif mha.behind is not None and "norm" in mha.behind:
        words.append("norms before and behind attention and FFN")
    if built.norms == "1 + weight":
        words.append("norms multiply by 1 + weight")
    if len(mha.inputs) == 1:
        words.append("one map for q, k, v")
    if len(ffn.inputs) == 1:
        words.append("one map for gate and up")
    if built.multiplier is not None:
        words.append("a factor on both branches")
    if built.after:
        words.append("a factor on the layer, inputs by layer")
    if built.more and not built.after:
        words.append("layers of other kinds")
    return ", ".join(words) or "Llama's"


def texts() -> list[str]:
    """A row for each class of language model."""
    rows = ["| language model | blocks | what may be skipped | folds | prompt methods | engines |", "|" + 6 * "---|"]
    for name, built in TEXT_MODELS.items():
        if built.form == "decoder":
            blocks = f"{terms(built)}, with experts" if name in EXPERTS else terms(built)
            folds = "shared" if name in EXPERTS else "all"
            skipped = CANDIDATES.get(name, "all layers")
            graphs = "vLLM, ONNX, OpenVINO" if name == "Qwen3Model" else "vLLM" if name in VLLM else "none"
            engines = "all" if name in LLAMA else graphs
            rows.append(f"| `{name}` | {blocks} | {skipped} | {folds} | {PROMPTS[built.prompts]} | {engines} |")
    return rows


def refused() -> list[str]:
    """The classes that do not fit, and why."""
    return [f"- `{name}`: {why}." for name, why in REFUSED.items()]


def filled(page: str) -> str:
    """The page with its tables as the code has them."""
    for name, rows in (("classes", classes()), ("texts", texts()), ("refused", refused())):
        start, end = (mark.format(name) for mark in MARKS)
        before, _, rest = page.partition(start)
        page = before + "\n".join([start, "", *rows, "", end]) + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
