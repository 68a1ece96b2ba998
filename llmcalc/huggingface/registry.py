"""The registry: which reader reads a ``model_type``.

* `READERS`: ``module.function`` in this package, by model type. A module is imported when a
  model of its types is read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["READERS"]

READERS: Final[dict[str, str]] = {
    # Attention and one feed-forward in every layer.
    "apertus": "dense.llama",
    "arcee": "dense.llama",
    "bitnet": "dense.llama",
    "bloom": "classic.bloom",
    "cohere": "dense.llama",
    "cohere2": "dense.llama",
    "cwm": "dense.llama",
    "ernie4_5": "dense.llama",
    "exaone4": "dense.llama",
    "falcon": "classic.falcon",
    "gemma": "dense.llama",
    "gemma2": "dense.llama",
    "gemma3_text": "dense.llama",
    "glm": "dense.llama",
    "glm4": "dense.llama",
    "gpt-sw3": "classic.gpt2",
    "gpt2": "classic.gpt2",
    "gpt_bigcode": "classic.gpt_bigcode",
    "gpt_neo": "classic.gpt_neo",
    "gpt_neox": "dense.llama",
    "gptj": "classic.gptj",
    "granite": "dense.llama",
    "granite_swa": "dense.llama",
    "helium": "dense.llama",
    "hunyuan_v1_dense": "dense.llama",
    "hyperclovax": "dense.llama",
    "internlm3": "dense.llama",
    "llama": "dense.llama",
    "ministral": "dense.llama",
    "ministral3": "dense.llama",
    "mistral": "dense.llama",
    "mpt": "classic.mpt",
    "nemotron": "dense.llama",
    "olmo": "dense.llama",
    "olmo2": "dense.llama",
    "olmo3": "dense.llama",
    "opt": "classic.opt",
    "persimmon": "dense.llama",
    "phi": "dense.llama",
    "phi3": "dense.llama",
    "qwen2": "dense.llama",
    "qwen3": "dense.llama",
    "seed_oss": "dense.llama",
    "smollm3": "dense.llama",
    "stablelm": "dense.llama",
    "starcoder2": "dense.llama",
    "vaultgemma": "dense.llama",
    # Mixtures of experts.
    "mixtral": "experts.mixtral",
    # Latent attention.
    # Recurrent and hybrid models.
}
