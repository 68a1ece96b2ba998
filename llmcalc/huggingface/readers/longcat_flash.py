"""LongCat Flash, whose layers have two attentions, two feed-forwards and experts."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.deepseek import latent_attention
from llmcalc.huggingface.readers.mixture import experts
from llmcalc.huggingface.reading import assemble, feed_forward, rms_norm
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.parallel import ParallelBlock

__all__ = ["longcat_flash"]


def longcat_flash(config: Config, name: str) -> ModelSpec:
    """Read a LongCat Flash, whose layers have two attentions, two feed-forwards and experts.

    Each half is a layer here, as transformers counts them in ``num_hidden_layers``; the experts
    stand beside the first feed-forward. Some experts pass their input on
    (``models/longcat_flash/modeling_longcat_flash.py``).
    """
    halves = config.given("num_hidden_layers")
    if "num_layers" not in config and halves is not None:
        layers = config.num_layers() // 2
    else:
        layers = config.num_layers("num_layers")
        if halves is not None and halves != 2 * layers:
            rule = f"must be twice num_layers ({layers}): each has two attentions"
            raise InvalidValueError("num_hidden_layers", halves, rule)
    nope, rope = config.required_size("qk_nope_head_dim"), config.required_size("qk_rope_head_dim")
    width = config.optional_size("qk_head_dim")
    if width is not None and width != nope + rope:
        raise InvalidValueError(
            "qk_head_dim", width, f"must be qk_nope_head_dim ({nope}) + qk_rope_head_dim ({rope})"
        )
    config.required_size("q_lora_rank")
    idle = 0 if config.get("zero_expert_num") is None else config.count("zero_expert_num")
    norm = rms_norm(config)
    mixer = Block(part=latent_attention(config), norm=norm)
    dense = Block(part=feed_forward(config, "ffn_hidden_size"))
    routed = experts(
        config,
        "n_routed_experts",
        "expert_ffn_hidden_size",
        top_k="moe_topk",
        no_op_experts=idle or None,
        balanced=True,
        router_bias=config.given("router_bias") is not None and config.flag("router_bias"),
    )
    halves = (
        Layer(blocks=(mixer, ParallelBlock(norm=norm, blocks=(dense, Block(part=routed))))),
        Layer(blocks=(mixer, Block(part=dense.part, norm=norm))),
    )
    remark = (
        f"{idle} of the experts that a router may pick pass their input on: active parameters are "
        "a bound, and the gate and up matrices that transformers stores for them are counted"
    )
    return assemble(
        config, name, halves * layers, final_norm=norm, remarks=(remark,) if idle else ()
    )
