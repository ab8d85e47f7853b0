"""vLLM's plugin for folders that ``eas export`` wrote.

vLLM calls ``register`` in each of its processes. Nothing of vLLM is imported before a model needs it.
"""


def register() -> None:
    """Makes vLLM know the configurations and the model; a second call changes nothing."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from eas_vllm.configuration import DeciLMConfig, EASServedConfig

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    AutoConfig.register(EASServedConfig.model_type, EASServedConfig, exist_ok=True)
    if EASServedConfig.architecture not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(EASServedConfig.architecture, "eas_vllm.model:EASForCausalLM")
