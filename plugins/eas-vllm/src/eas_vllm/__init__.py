"""vLLM's plugin for folders that ``eas export`` wrote.

vLLM calls ``register`` in each of its processes. Nothing of vLLM is imported before a model needs it.
"""

MODELS = {
    "EASForCausalLM": "eas_vllm.model:EASForCausalLM",
    "EASPooledForCausalLM": "eas_vllm.model:EASPooledForCausalLM",
    **{
        f"EAS{family}ForConditionalGeneration": f"eas_vllm.seeing:EAS{family}"
        for family in ("Llava", "LlavaOnevision", "InternVL", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
    },
}
"""By their names in config.json."""


def register() -> None:
    """Makes vLLM know the configurations and the models; a second call changes nothing."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from eas_vllm.configuration import CONFIGS

    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for name, place in MODELS.items():
        if name not in known:
            ModelRegistry.register_model(name, place)
