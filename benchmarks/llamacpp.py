"""llama.cpp's server in float32, to compare with the engine in memory: python benchmarks/llamacpp.py MODEL.gguf FOLDER

It needs an environment of its own with xllamacpp and gguf. The model is unpacked to float32 once, into FOLDER, and served until
it is stopped. `--half` keeps llama.cpp's own default, a cache of keys and values in half precision.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

F32, NO_FLASH = 0, 0  # of ggml_type and llama_flash_attn_type
SLOTS, CONTEXT = 8, 2048  # rows at once, and tokens of each


def unpack(source: Path, target: Path) -> None:
    """Write the model with every tensor in float32 and all of its other fields as they are."""
    reader = gguf.GGUFReader(source)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            writer.add_key_value(
                name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def serve(model: Path, port: int, threads: int, half: bool) -> Any:
    """Start the server; it runs as long as what is returned lives."""
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(model), ["127.0.0.1"], port
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads = SLOTS, SLOTS * CONTEXT, threads
    if not half:
        params.cache_type_k = params.cache_type_v = type(params.cache_type_k)(F32)
        params.flash_attn_type = type(params.flash_attn_type)(NO_FLASH)
    return xllamacpp.Server(params)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--half", action="store_true", help="keys and values in half precision")
    given = parser.parse_args()
    file = given.folder / f"{given.model.stem}-f32.gguf"
    if not file.exists():
        given.folder.mkdir(parents=True, exist_ok=True)
        unpack(given.model, file)
    server = serve(file, given.port, given.threads, given.half)
    print(f"--engine {server.listening_address}/v1", flush=True)
    signal.pause()
