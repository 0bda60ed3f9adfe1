"""Shared by all tests: a tiny random model, tokenizers of three kinds, and no way out to the network.

The tiny model is a Llama of two layers with grouped-query attention and 320 tokens: 256 bytes, four control tokens and
merges learned from `CORPUS`. Its weights are random but drawn large enough that its distributions are not flat.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the library is first imported
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from killed import forget_runs
from tokendeep.types import Subject

FIXTURES = Path(__file__).parent / "fixtures"
TEMPLATES = FIXTURES / "templates"
VOCABULARY = 320
SMALL = {  # of configurations of many architectures
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
CORPUS = [
    "How do I bake bread with flour, water and salt?",
    "Mix the flour with water, add salt and let the dough rest for an hour.",
    "I cannot help with that, but I can tell you about something else.",
    "I'm sorry, I can't assist with this request.",
    "Sure, here is a short list:\n1. First, open the window.\n2. Then water the plants.",
    "The capital of France is Paris; the capital of Italy is Rome.",
    "You are a helpful assistant. Answer briefly and honestly, please.",
    "Below is an instruction that describes a task. Write a response: user system model assistant think",
    "[INST] <<SYS>> <</SYS>> [/INST] ### Instruction: ### Response:",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """What a test hears of our warnings does not hang on the tests before it: Inspect lets the root logger tell errors only."""
    levels = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("tokendeep"))}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_open_runs() -> Iterator[None]:
    """A run that a test has broken off is not open for the tests behind it, as it would not be in another process."""
    yield
    forget_runs()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test fails that tries to reach another machine, also where the library under it swallows the error."""
    tried: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def local(host: Any) -> bool:
        name = host.decode() if isinstance(host, bytes) else host
        return name in (None, "", "localhost", "::1", "0.0.0.0") or str(name).startswith("127.")

    def guarded_look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if not local(host):
            tried.append(str(host))
            raise OSError("tests have no network")
        return look_up(host, *rest, **more)

    def guarded_connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not local(address[0]):
            tried.append(str(address))
            raise OSError("tests have no network")
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    yield
    assert not tried, f"the network was asked for: {tried}"


def chatml() -> str:
    """The ChatML template of the fixtures."""
    return (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_tokenizer_json() -> str:
    """The tiny model's tokenizer, trained once: every byte is a token, so nothing is unknown to it."""
    return _byte_level(CONTROL, VOCABULARY).to_str()


@pytest.fixture
def tiny_tokenizer(tiny_tokenizer_json: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer with a few merges and ChatML as its template; it adds no BOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer_json),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=chatml(),
        model_max_length=512,
    )


@pytest.fixture
def make_model() -> Callable[..., LlamaForCausalLM]:
    """Builds tiny random Llamas: make_model(seed, **settings)."""

    def make(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
        config = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": CONTROL.index("<|im_end|>"),
            "pad_token_id": CONTROL.index("<pad>"),
            "tie_word_embeddings": True,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**{**config, **settings})).eval()

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    """A random Llama, float32 on the CPU, new for every test."""
    return make_model()


@pytest.fixture
def tiny_subject(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Subject:
    """The tiny model with its tokenizer."""
    return Subject(tiny_model, tiny_tokenizer, "tiny")


@pytest.fixture
def tiny_folder(tiny_subject: Subject, tmp_path: Path) -> Path:
    """A folder that holds the tiny model, its tokenizer and its chat template."""
    folder = tmp_path / "tiny-model"
    tiny_subject.model.save_pretrained(folder)
    tiny_subject.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    """A LoRA adapter folder on top of `tiny_folder`, with weights that change what the model says."""
    from peft import LoraConfig, get_peft_model

    base = LlamaForCausalLM.from_pretrained(tiny_folder, local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    folder = tmp_path / "tiny-adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_gguf(tmp_path: Path, tiny_subject: Subject) -> Path:
    """The tiny model as a GGUF file under the name of the packaged one."""
    from gguf_files import write_gguf
    from tokendeep.models.packaged import GGUF

    path = tmp_path / "package" / GGUF
    path.parent.mkdir()
    write_gguf(path, tiny_subject.model, tiny_subject.tokenizer)
    return path


def _byte_level(control: list[str], size: int) -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _unigram(control: list[str], size: int) -> Tokenizer:
    """Unigram with a mark for the leading space, as SentencePiece has it; newlines are pieces of their own.

    The pieces are written down, not trained: the trainer gives other ones in every process.
    """
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = sorted({c for word in words for c in word} | set("\n</>|_▁"))
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in control), *((letter, -8.0) for letter in letters)]
    pieces += [("▁" + word, -4.0 - len(word) / 8) for word in words] + [(w, -5.0) for w in words if len(w) > 1]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>", *control])
    return tokenizer


def _llama(control: list[str], size: int) -> Tokenizer:
    """BPE over whole texts, the leading-space mark put in front by the normaliser, as Llama 2 and Mistral have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    letters = sorted({c for line in CORPUS for c in line if c != " "} | set("\n</>|_▁"))
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *control], initial_alphabet=letters, show_progress=False
    )
    words = (word for line in CORPUS for word in line.split())
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def _wordpiece(control: list[str], size: int) -> Tokenizer:
    """WordPiece in lower case, which knows no spaces and no newlines; its pieces are written down as well."""
    words = sorted({word for line in CORPUS for word in re.findall(r"\w+", line.lower())})
    letters = sorted({c for line in CORPUS for c in line.lower() if not c.isspace()} | set("</>|_"))
    pieces = dict.fromkeys(
        ["[UNK]", *control, *letters, *("##" + letter for letter in letters), *words, "##ing", "##er"]
    )
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", *control])
    return tokenizer


KINDS = {"byte-level": _byte_level, "unigram": _unigram, "llama": _llama, "wordpiece": _wordpiece}


def build_tokenizer(
    kind: str, *, control: list[str], bos: str | None, eos: str, template: str, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind (see KINDS) with these control tokens and this chat template."""
    backend = KINDS[kind](control, 420)
    if adds_bos:
        assert bos is not None
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=[token for token in control if token not in (bos, eos)],
        chat_template=template,
    )
