"""The configurations that vLLM reads from config.json."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from transformers import (
    InternVLConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from eas_vllm.record import require_known


class Recorded:
    """Of a configuration that looks at the record of its folder, if vLLM was given a folder."""

    ours = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        folder = Path(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "")
        if (folder / "config.json").is_file():
            require_known(folder, ours=cls.ours)
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]


class DeciLMConfig(Recorded, PretrainedConfig):
    """DeciLM's, for vLLM's own DeciLM model: no code of the folder is run."""

    model_type = "nemotron-nas"
    ours = False

    def __init__(self, block_configs: Any = (), max_position_embeddings: int = 8192, **kwargs: Any) -> None:
        self.max_position_embeddings = max_position_embeddings  # scaled rotary positions are checked with it
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**values) for part, values in block.items()})
            for block in block_configs
        ]

    def to_dict(self) -> dict[str, Any]:
        blocks = [{part: dict(vars(own)) for part, own in vars(block).items()} for block in self.block_configs]
        return {**super().to_dict(), "block_configs": blocks}


class EASServedConfig(Recorded, PretrainedConfig):
    """A decoder of plain weights, some of whose layers have no attention.

    Args:
        skip_set: these layers.
        head_norms: whether queries and keys are normalised (Qwen3).
        pool_rank: numbers of the running mean that these layers keep; 0 if they keep none.
        max_position_embeddings: the longest sequence; scaled rotary positions are checked with it.
        kwargs: as in Llama's configuration.
    """

    model_type = "eas-decoder"
    architecture = "EASForCausalLM"
    ignore_keys_at_rope_validation: ClassVar = {"mrope_section", "mrope_interleaved"}

    def __init__(
        self,
        skip_set: Any = (),
        head_norms: bool = False,
        pool_rank: int = 0,
        max_position_embeddings: int = 8192,
        **kwargs: Any,
    ) -> None:
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)
        self.skip_set, self.head_norms, self.pool_rank = list(skip_set), head_norms, pool_rank

    @property
    def block_configs(self) -> list[SimpleNamespace]:
        """By layer, as vLLM asks for them to count the attentions."""
        return [
            SimpleNamespace(attention=SimpleNamespace(no_op=index in self.skip_set))
            for index in range(self.num_hidden_layers)
        ]

    @property
    def layers_block_type(self) -> list[str]:
        """The same, as vLLM asks for it where layers keep states."""
        return ["mamba" if index in self.skip_set else "attention" for index in range(self.num_hidden_layers)]


class SeeingLlavaConfig(Recorded, LlavaConfig):
    """LLaVA's, whose language model is an ``EASServedConfig``; as those below."""

    model_type = "eas-llava"


class SeeingLlavaOnevisionConfig(Recorded, LlavaOnevisionConfig):
    model_type = "eas-llava_onevision"


class SeeingInternVLConfig(Recorded, InternVLConfig):
    model_type = "eas-internvl"


class SeeingQwen2VLConfig(Recorded, Qwen2VLConfig):
    model_type = "eas-qwen2_vl"
    sub_configs: ClassVar = {**Qwen2VLConfig.sub_configs, "text_config": EASServedConfig}


class SeeingQwen2_5_VLConfig(Recorded, Qwen2_5_VLConfig):
    model_type = "eas-qwen2_5_vl"
    sub_configs: ClassVar = {**Qwen2_5_VLConfig.sub_configs, "text_config": EASServedConfig}


class SeeingQwen3VLConfig(Recorded, Qwen3VLConfig):
    model_type = "eas-qwen3_vl"
    sub_configs: ClassVar = {**Qwen3VLConfig.sub_configs, "text_config": EASServedConfig}


CONFIGS = (
    DeciLMConfig,
    EASServedConfig,
    SeeingLlavaConfig,
    SeeingLlavaOnevisionConfig,
    SeeingInternVLConfig,
    SeeingQwen2VLConfig,
    SeeingQwen2_5_VLConfig,
    SeeingQwen3VLConfig,
)
