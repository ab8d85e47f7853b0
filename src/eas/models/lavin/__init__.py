"""LaVIN (Luo et al. 2023, arXiv 2305.15023): LLaMA that sees an image as a few CLS features of a CLIP ViT.

Importing it makes the Auto classes of ``transformers`` know its configuration, model and processor.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from eas.models.lavin.configuration import LavinConfig
from eas.models.lavin.modeling import LavinForConditionalGeneration, LavinModel
from eas.models.lavin.processing import LavinProcessor

__all__ = ["LavinConfig", "LavinForConditionalGeneration", "LavinModel", "LavinProcessor"]

AutoConfig.register(LavinConfig.model_type, LavinConfig)
AutoModelForImageTextToText.register(LavinConfig, LavinForConditionalGeneration)
AutoProcessor.register(LavinConfig, LavinProcessor)
