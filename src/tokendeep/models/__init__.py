"""Where models lie, and how they are loaded."""

from tokendeep.models.adapters import reference, unlike_base
from tokendeep.models.checks import check_no_base, check_spec, check_tokenizer, missing_base, same_model
from tokendeep.models.compare import check_same_tokens, check_same_vocabulary, check_tokens, context_length, tokens_of
from tokendeep.models.loading import facts, load, load_tokenizer
from tokendeep.models.locate import adapter_base, is_adapter, on_hub
from tokendeep.models.options import AdapterBase, ModelOptions
from tokendeep.models.outline import Outline, layer_count, outline
from tokendeep.models.packaged import cache_dir, smollm2_folder
from tokendeep.models.unread import check_read, first_reads
