"""Parameters: of the whole model, of a layer, of one token, and what is stored beside them.

* `parameters`: parameters of the whole model.
* `layer_parameters`: parameters of one layer of each kind.
* `active_parameters`: those that one token passes through.
* `buffers`: what is stored with the parameters and is none.
* `multi_token_parameters`: those of modules that predict further tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmcalc.boundary import choice, flag_argument
from llmcalc.breakdown import Breakdown, Term
from llmcalc.spec.axes import Axis
from llmcalc.spec.kept import kept
from llmcalc.spec.model import Ledger, ModelSpec, check_spec
from llmcalc.units import Params

if TYPE_CHECKING:
    from llmcalc.spec.ledger import StoredTensor

__all__ = [
    "active_parameters",
    "buffers",
    "layer_parameters",
    "multi_token_parameters",
    "parameters",
]


def parameters(
    spec: ModelSpec, *, tied_head: Literal["once", "twice"] = "once"
) -> Breakdown[Params]:
    r"""Return the parameters of the whole model, every stored weight once.

    .. math:: P = \sum_{\text{distinct weights}} \text{count} \prod \text{shape}

    A tied head adds none; with ``tied_head="twice"`` it counts beside the token table, as it does
    in files that store it once more and in the totals published from them. Parameters never depend
    on parallelism or format. Raises `llmcalc.LlmcalcError` for any other `tied_head`.

    >>> from llmcalc import ModelSpec, memory
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> print(memory.parameters(spec)["norms"].explain())
    Parameters of tiny: norms
      attention_norm.weight     64 embed x 2 layers = 128 parameters
      feed_forward_norm.weight  64 embed x 2 layers = 128 parameters
      final_norm.weight         64 embed = 64 parameters
      total 320 parameters

    The sums by group are ``.by()``, those by kind of layer ``.by(1)``, where the first is of what
    stands outside the layers; `layer_parameters` gives those of one layer.

    >>> dict(memory.parameters(spec).by(1))
    {'': 12864, 'decoder': 73984}

    >>> from llmcalc import load_model
    >>> qwen = load_model("Qwen3-0.6B")
    >>> memory.parameters(qwen).total, memory.parameters(qwen, tied_head="twice").total
    (596049920, 751632384)
    """
    check_spec(spec)
    choice(tied_head, "tied_head", ("once", "twice"))
    title, terms = f"Parameters of {spec.name}", kept(spec.ledger, _all_parameters)
    if tied_head == "once" or not spec.head.tied:
        return Breakdown(Params, title, terms)
    width = spec.embedding.width
    column = (spec.embed_dim, "embed") if width is None else (width, "embedding")
    vocab = (spec.embedding.vocab_size, "vocab")
    head = Term(("head", "", "output.weight"), (vocab, column))
    return Breakdown(Params, f"{title}, its tied head twice", (*terms, head))


def layer_parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters of one layer of each kind.

    .. math:: P = P_\text{outside} + \sum_{\text{kinds}} \text{layers} \cdot P_\text{layer}

    The kinds are the labels in `ModelSpec.layers`, which also says where they stand; ``.by(1)``
    gives the sum of each. Weights that several layers share belong to none of them.

    >>> from llmcalc import load_model, memory
    >>> gemma = load_model("gemma-2-9b")
    >>> [(run.label, run.count) for run in gemma.layers[:3]]
    [('window', 1), ('decoder', 1), ('window', 1)]
    >>> dict(memory.layer_parameters(gemma).by(1))
    {'window': 198195200, 'decoder': 198195200}
    >>> memory.parameters(gemma).total == (
    ...     memory.parameters(gemma).by(1)[""] + 21 * 198195200 + 21 * 198195200
    ... )
    True
    """
    check_spec(spec)
    terms = [
        Term(tensor.path, tensor.row_factors + tensor.column_factors)
        for tensor in spec.ledger.tensors
        if tensor.times
    ]
    return Breakdown(Params, f"Parameters of one layer of each kind of {spec.name}", terms)


def active_parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters that one token passes through: of the experts, those it is routed to.

    .. math:: P_\text{active} = P - \sum_{\text{routed}} P_\text{routed}
              \left(1 - \frac{k}{E}\right)

    Everything else counts in full, the embedding tables too.

    >>> from llmcalc import load_model, memory
    >>> mixtral = load_model({
    ...     "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    ...     "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    ... }, name="mixtral-8x7b")
    >>> memory.parameters(mixtral).total, memory.active_parameters(mixtral).total
    (46702792704, 12879925248)
    """
    check_spec(spec)
    terms = [
        Term(
            tensor.path,
            tensor.active_factors + tensor.column_factors + tensor.times,
        )
        for tensor in spec.ledger.tensors
    ]
    return Breakdown(Params, f"Active parameters of {spec.name}", terms)


def buffers(spec: ModelSpec, *, multi_token: bool = False) -> Breakdown[Params]:
    r"""Return the elements that are stored with the parameters without being any.

    No gradient changes them: offsets of experts' scores that training sets by their load, tables
    of the experts of each token, one factor of a layer's result, constants of an activation, and
    the decays of lightning attention. These are the persistent buffers of transformers' modules,
    what their ``state_dict`` has more than the parameters. `parameters`, `active_parameters` and
    `weight_bytes` leave them out, as model cards do; checkpoints hold them, so that the elements
    of all tensors in their files, which the Hugging Face hub shows, count them too. With
    `multi_token` those of the modules that predict further tokens are counted as well.

    >>> from llmcalc import load_model, memory
    >>> deepseek = load_model("deepseek-v3")
    >>> print(memory.buffers(deepseek).explain())
    Buffers of deepseek-ai/DeepSeek-V3
      router_balance  256 experts x 58 layers = 14 848 parameters
      total 14 848 parameters
    >>> memory.parameters(deepseek).total + memory.buffers(deepseek).total
    671026419200
    """
    check_spec(spec)
    flag_argument(multi_token, "multi_token")
    ledgers = (spec.ledger, spec.multi_token_ledger) if multi_token else (spec.ledger,)
    tensors = (tensor for ledger in ledgers for tensor in ledger.buffers)
    return Breakdown(Params, f"Buffers of {spec.name}", map(_parameters, tensors))


def multi_token_parameters(spec: ModelSpec, *, copies: bool = False) -> Breakdown[Params]:
    r"""Return the parameters of the modules that predict further tokens (multi-token prediction).

    .. math:: P = n \, (P_\text{layer} + 2 H^2 + 3 H)

    A model that was trained to predict several tokens may keep the modules for them in its
    checkpoint, and an engine may draft with them. `parameters` leaves them out, and so does every
    other function. A module has a layer of its own (DeepSeek-V3: one with experts), a matrix that
    joins the embedding of a token and the hidden state, each of `H` elements, and their norms and
    the result's. `load_model` counts the modules that the config states (for most models
    ``num_nextn_predict_layers``); `ModelSpec.notes` says where it does not.

    The embedding and the head are the model's own. The checkpoints of DeepSeek-V3 and GLM-4.5
    hold a copy of both for each module, those of Qwen3-Next and DeepSeek-V4 none: `copies` counts
    them.

    >>> from llmcalc import load_model, memory
    >>> deepseek = load_model("deepseek-v3")
    >>> memory.multi_token_parameters(deepseek).total
    11610067968
    >>> memory.multi_token_parameters(deepseek, copies=True).total
    13463426048
    """
    check_spec(spec)
    flag_argument(copies, "copies")
    tensors = list(spec.multi_token_ledger.tensors)
    if copies:
        embed = Axis("embed", spec.embed_dim)
        for module in spec.multi_token:
            tensors += Ledger(spec, module.copies(embed, spec.embedding.vocab)).tensors
    title = f"Multi-token prediction of {spec.name}"
    return Breakdown(Params, title, map(_parameters, tensors))


def _all_parameters(ledger: Ledger) -> tuple[Term[int], ...]:
    return tuple(map(_parameters, ledger.tensors))


def _parameters(tensor: StoredTensor) -> Term[int]:
    """Give the elements of a stored weight."""
    return Term(tensor.path, tensor.row_factors + tensor.column_factors + tensor.times)
