"""Where models lie, and how they are loaded."""

from tokendeep.models.loading import (
    check_same_vocabulary,
    context_length,
    load,
    load_tokenizer,
    reference,
    same_trainable,
)
from tokendeep.models.locate import (
    adapter_base,
    check_spec,
    is_adapter,
)
from tokendeep.models.options import (
    ModelOptions,
)
from tokendeep.models.packaged import (
    cache_dir,
    smollm2_folder,
)

__all__ = [
    "ModelOptions",
    "adapter_base",
    "cache_dir",
    "check_same_vocabulary",
    "check_spec",
    "context_length",
    "is_adapter",
    "load",
    "load_tokenizer",
    "reference",
    "same_trainable",
    "smollm2_folder",
]
