"""Models that read images: vLLM's own, with our language model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models import interns1, llava, llava_onevision, qwen2_5_vl, qwen2_vl, qwen3_vl

from eas_vllm.model import EASForCausalLM


class Seeing:
    """Of a model that reads images.

    Args:
        module: vLLM's, of the model.
        builder: what the module calls to build the language model.
    """

    module: ModuleType
    builder: str
    language_model: EASForCausalLM

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        with building(self.module, self.builder):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = super().load_weights(weights)  # type: ignore[misc]
        self.language_model.require_complete()
        return loaded


@contextmanager
def building(module: ModuleType, name: str) -> Iterator[None]:
    """Within it a module of vLLM builds our language model, where it would build its own: some name the class of it."""
    own = vars(module)[name]
    setattr(module, name, decoder)
    try:
        yield
    finally:
        setattr(module, name, own)


def decoder(vllm_config: VllmConfig, prefix: str, **_: Any) -> EASForCausalLM:
    """The language model of a model that reads images."""
    text = vllm_config.model_config.hf_config.get_text_config()
    return EASForCausalLM(vllm_config=vllm_config.with_hf_config(text, [text.architecture]), prefix=prefix)


class EASLlava(Seeing, llava.LlavaForConditionalGeneration):
    module, builder = llava, "init_vllm_registered_model"


class EASLlavaOnevision(Seeing, llava_onevision.LlavaOnevisionForConditionalGeneration):
    module, builder = llava_onevision, "init_vllm_registered_model"


class EASInternVL(Seeing, interns1.InternS1ForConditionalGeneration):
    module, builder = interns1, "init_vllm_registered_model"


class EASQwen2VL(Seeing, qwen2_vl.Qwen2VLForConditionalGeneration):
    module, builder = qwen2_vl, "init_vllm_registered_model"


class EASQwen2_5_VL(Seeing, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    module, builder = qwen2_5_vl, "init_vllm_registered_model"


class EASQwen3VL(Seeing, qwen3_vl.Qwen3VLForConditionalGeneration):
    module, builder = qwen3_vl, "Qwen3LLMForCausalLM"
