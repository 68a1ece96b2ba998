"""The registry: which reader reads a ``model_type``.

* `READERS`: ``module.function`` in this package, by model type. A module is imported when a
  model of its types is read.
"""

from __future__ import annotations

from typing import Final

__all__ = ["READERS"]

READERS: Final[dict[str, str]] = {
    # Attention and one feed-forward in every layer.
    "gpt2": "dense.gpt2",
    "llama": "dense.llama",
    "mistral": "dense.mistral",
    "qwen2": "dense.qwen2",
    # Mixtures of experts.
    "mixtral": "experts.mixtral",
    # Latent attention.
    # Recurrent and hybrid models.
}
