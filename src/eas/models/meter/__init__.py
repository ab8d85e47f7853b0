"""METER (Dou et al. 2022) as Hugging Face models; transformers' Auto classes know them once this is imported."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from eas.models.meter.configuration import MeterConfig
from eas.models.meter.heads import (
    TASKS,
    AutoMeter,
    MeterForImageTextRetrieval,
    MeterForNLVR2,
    MeterForPreTraining,
    MeterForVisualQuestionAnswering,
)
from eas.models.meter.modeling import MeterModel
from eas.models.meter.processing import MeterImageProcessor, MeterProcessor

AutoConfig.register("meter", MeterConfig)
AutoModel.register(MeterConfig, MeterModel)
AutoProcessor.register(MeterConfig, MeterProcessor)
AutoImageProcessor.register(MeterConfig, image_processor_classes={"pil": MeterImageProcessor})

__all__ = [
    "TASKS",
    "AutoMeter",
    "MeterConfig",
    "MeterForImageTextRetrieval",
    "MeterForNLVR2",
    "MeterForPreTraining",
    "MeterForVisualQuestionAnswering",
    "MeterImageProcessor",
    "MeterModel",
    "MeterProcessor",
]
