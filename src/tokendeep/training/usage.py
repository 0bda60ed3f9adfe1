"""How plain transformers and PEFT load a checkpoint: the part of its model card that holds the lines to copy.

Knows what a saved adapter names as its base. Paths are told by their last part alone, for cards are made to be shared;
ids of the hub are told whole.
"""

import json
from pathlib import Path

from tokendeep.models import packaged

FULL = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""
ADAPTER = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")  # its base, {base}, is loaded with it
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""
GGUF = """
The base is a GGUF file, which PEFT does not load by its name. {where}Anywhere else the base is loaded from the
file, and the adapter put onto it:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("FOLDER", gguf_file="{file}", dtype="float32")
model = PeftModel.from_pretrained(base, "{folder}")
```

tokendeep takes both: `--model {folder} --base FOLDER/{file}`.
"""
CONVERTED = (
    "Where the adapter was trained, tokendeep\nconverted the file once into a folder of its cache, which the adapter names: "
    "there the lines above work.\n"
)


def how_to_load(folder: Path) -> str:
    """The lines that load a saved checkpoint, for a full model or an adapter, as Markdown."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return FULL.format(folder="PATH/TO/THIS/FOLDER")
    base = Path(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "its base")
    here = {"folder": "PATH/TO/THIS/FOLDER"}
    if base.suffix == ".gguf":
        return GGUF.format(where="", file=base.name, **here).lstrip()
    local = base.is_absolute() or base.exists()
    text = ADAPTER.format(base=base.name if local else base, **here)
    if packaged.is_conversion(base):
        text += GGUF.format(where=CONVERTED, file=packaged.converted_from(base), **here)
    return text
