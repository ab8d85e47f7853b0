"""The configurations that vLLM reads from config.json."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PretrainedConfig

from eas_vllm.record import require_known


class Recorded(PretrainedConfig):
    """A configuration that looks at the record of its folder, if vLLM was given a folder."""

    ours = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PretrainedConfig:
        folder = Path(kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "")
        if (folder / "config.json").is_file():
            require_known(folder, ours=cls.ours)
        return super().from_dict(config_dict, **kwargs)


class DeciLMConfig(Recorded):
    """DeciLM's, for vLLM's own DeciLM model: no code of the folder is run."""

    model_type = "nemotron-nas"

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


class EASServedConfig(Recorded):
    """A decoder of plain weights, some of whose layers have no attention.

    Args:
        skip_set: these layers.
        head_norms: whether queries and keys are normalised (Qwen3).
        max_position_embeddings: the longest sequence; scaled rotary positions are checked with it.
        kwargs: as in Llama's configuration.
    """

    model_type = "eas-decoder"
    architecture = "EASForCausalLM"
    ours = True

    def __init__(
        self, skip_set: Any = (), head_norms: bool = False, max_position_embeddings: int = 8192, **kwargs: Any
    ) -> None:
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)
        self.skip_set, self.head_norms = list(skip_set), head_norms

    @property
    def block_configs(self) -> list[SimpleNamespace]:
        """By layer, as vLLM asks for them to count the attentions."""
        return [
            SimpleNamespace(attention=SimpleNamespace(no_op=index in self.skip_set))
            for index in range(self.num_hidden_layers)
        ]
