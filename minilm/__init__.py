"""minilm: a GPT-style language model, built step by step.

    from minilm import load, generate
    model, tok = load("tiny")
    print(tok.decode(generate(model, tok.encode("def add("), max_new_tokens=40)))

Where a function and a module have the same name (`generate`, `train`, `evaluate`, `record`), the
name here is the function.
"""

from . import exercises, ops
from .attention import AttentionHead, KVCache, MultiHeadAttention, RotaryEmbedding
from .checkpoint import load, save_checkpoint
from .corpus import Corpus, is_held_out
from .corruption import corrupt
from .data import TokenStream
from .doctor import doctor
from .evaluate import Evaluation, evaluate
from .generate import generate, next_probabilities, sample_next, stream
from .layers import MLP, Block, Norm, SwiGLU
from .loss import masked_token_loss, next_token_loss
from .model import PRESETS, MiniLM, ModelConfig
from .optim import SGD, AdamW, Lion, clip_grad_norm, warmup_cosine
from .pairs import pack, pair_batch
from .record import record
from .tokenizer import Tokenizer
from .train import train
from .trainconfig import TrainConfig

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "PRESETS",
    "SGD",
    "AdamW",
    "AttentionHead",
    "Block",
    "Corpus",
    "Evaluation",
    "KVCache",
    "Lion",
    "MiniLM",
    "ModelConfig",
    "MultiHeadAttention",
    "Norm",
    "RotaryEmbedding",
    "SwiGLU",
    "TokenStream",
    "Tokenizer",
    "TrainConfig",
    "clip_grad_norm",
    "corrupt",
    "doctor",
    "evaluate",
    "exercises",
    "generate",
    "is_held_out",
    "load",
    "masked_token_loss",
    "next_probabilities",
    "next_token_loss",
    "ops",
    "pack",
    "pair_batch",
    "record",
    "sample_next",
    "save_checkpoint",
    "stream",
    "train",
    "warmup_cosine",
]
