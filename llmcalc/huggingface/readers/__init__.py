"""Readers: what describes a model of one architecture, from its ``config.json``.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source that it names, of transformers unless it says otherwise. Which one reads a
``model_type`` is in `llmcalc.huggingface.registry`, and what they share is in
`llmcalc.huggingface.reading`. Models of one dialect are together, and an odd one has a file of its
own. The dialects:

* `llama`: dense models that differ from Llama in a few options, as rows of a table.
* `classic`: GPT-2 and other dense models from before Llama; models with ALiBi.
* `remote`: dense models whose code stands in their own repository.
* `mixtral`: mixtures whose router alone picks the experts.
* `balanced_mixtures`: mixtures whose router's scores have an offset for each expert.
* `deepseek`: DeepSeek's mixtures, and multi-head latent attention.
* `mamba`, `mamba_hybrids`: Mamba and Mamba 2, and these beside attention.

`mixture` is what readers of mixtures share, `hyper_connections` what those of models with
hyper-connections do.
"""
