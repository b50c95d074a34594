"""The families of models whose texts and pictures can be packed and loaded, one file each.

``docs/decisions/0010-model-families.md`` says how to add one.
"""

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families import (
    gemma3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)
from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.files import ProcessorFiles

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        llava_onevision,
        llava_next,
        llava,
        internvl,
        gemma3,
    )
}


def family_of(files: ProcessorFiles) -> Family:
    """The family of a processor, by its class, else by what else the files name.

    Raises:
        InputError: it is of no family that is known.
    """
    found = files.processor_class
    model_type = str(files.model.get("model_type") or "")
    image_processor = str(files.image.get("image_processor_type") or "")
    for family in FAMILIES.values():
        if found == family.processor_class or (not found and model_type == family.name):
            return family
    if not found and not model_type:
        for family in FAMILIES.values():
            if image_processor.startswith(family.image_processor):
                return family
    known = ", ".join(family.processor_class for family in FAMILIES.values())
    raise InputError(
        f"{files.name}: found {found or model_type or image_processor or 'no processor class'}, "
        f"expected one of {known}",
        hint="a family is one small file: docs/decisions/0010-model-families.md",
    )
