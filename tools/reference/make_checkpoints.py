#!/usr/bin/env python3
"""Makes the tiny random checkpoints for which no published answers exist, and their answers in float64.

tests/data/v1-tiny*          DeepSeekMoE (V1): transformers has no such model
tests/data/configs_extra/*   settings of V2 and V3 that no fixture has

Each folder has the files and tensor names of a fixture. A seed is passed over when a choice of the router or of greedy
decoding is so close that float32 could make it differently; golden.json records the one taken.

    python tools/reference/make_checkpoints.py [--all-gradients] [--out DIR] [NAME ...]

needs numpy, safetensors and ml_dtypes. --all-gradients keeps those that are left out of the committed files for size.
"""
import argparse
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save

import deepseek_numpy as ds

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
GREEDY_TOKENS = 40

V1 = {
    "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "attention_bias": False,
    "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 96, "max_position_embeddings": 256, "moe_intermediate_size": 48, "moe_layer_freq": 1,
    "n_routed_experts": 16, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 4,
    "num_experts_per_tok": 4, "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
    "rope_scaling": None, "rope_theta": 10000.0, "scoring_func": "softmax", "seq_aux": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 512,
}
V1_FREQ2 = V1 | {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "moe_layer_freq": 2,
    "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts_per_tok": 3, "vocab_size": 128,
}
# Head sizes differ from each other on purpose: mixing them up must not go unnoticed.
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu",
    "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 24, "kv_lora_rank": 16,
    "max_position_embeddings": 256, "moe_intermediate_size": 8, "moe_layer_freq": 1, "n_group": 1,
    "n_routed_experts": 4, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_nextn_predict_layers": 0,
    "q_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 10000.0, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 12,
    "vocab_size": 128,
}


def yarn(**settings) -> dict:
    return {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0} | settings


@dataclass
class Recipe:
    config: dict
    std: float = 0.15                 # of every matrix; wide enough for logits that say something
    tokens: int = 24
    gradients: str = ".*"             # pattern of the tensors whose gradients are kept
    adamw: bool = False
    own_std: dict[str, float] = field(default_factory=dict)      # by part of a name
    bias_mean: float = 0.0            # of e_score_correction_bias


def extra(*, gradients: str = r"model\.(layers|norm).*", own_std=None, bias_mean: float = 0.0, **changes) -> Recipe:
    """Embedding and head are left out of the gradients unless a recipe is about them: they are most of the bytes."""
    return Recipe(V3 | changes, gradients=gradients, own_std=own_std or {}, bias_mean=bias_mean)


RECIPES = {
    # Layer 2 is like 1 and 3.
    "v1-tiny": Recipe(V1, std=0.1, tokens=96, adamw=True, gradients=r"model\.(layers\.[013]|norm).*"),
    "v1-tiny-freq2": Recipe(V1_FREQ2, gradients=""),
    "configs_extra/odd-heads": extra(
        gradients=".*", hidden_size=40, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=None, kv_lora_rank=19,
        qk_nope_head_dim=7, qk_rope_head_dim=10, v_head_dim=9, moe_intermediate_size=11),
    # norm_topk_prob would make the one weight constant and the gate's gradient zero.
    "configs_extra/one-expert": extra(n_routed_experts=1, num_experts_per_tok=1, norm_topk_prob=False),
    "configs_extra/all-experts": extra(num_experts_per_tok=4),
    "configs_extra/tied-embeddings": extra(tie_word_embeddings=True, gradients=".*"),
    "configs_extra/attention-bias": extra(attention_bias=True),
    "configs_extra/mscale": extra(rope_scaling=yarn(mscale=1.0, mscale_all_dim=0.4)),
    # The corrected range is 2.55 ... 11.3 pairs: floor to 2, and cut at d - 1 = 7 (of 4 pairs).
    "configs_extra/yarn-range": extra(
        rope_theta=10.0,
        rope_scaling=yarn(original_max_position_embeddings=4096, beta_fast=150, factor=40.0)),
    # A weak kv_a makes the latent small enough for its own epsilon to show.
    "configs_extra/rms-norm-eps": extra(rms_norm_eps=1e-5, own_std={"q_a_proj": 0.002, "kv_a_proj": 0.002}),
    "configs_extra/moe-layer-freq-2": extra(moe_layer_freq=2, num_hidden_layers=3),
    # All biased scores are negative: masking dropped groups with 0 instead of -inf would choose from them.
    "configs_extra/negative-bias-groups": extra(
        n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, bias_mean=-2.0),
    "configs_extra/mtp": extra(num_nextn_predict_layers=1, gradients=".*"),
}


def random_weights(recipe: Recipe, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """float64 arrays whose values are exact in the type they are stored in."""
    weights = {}
    for name, shape in ds.parameter_shapes(recipe.config).items():
        draw = rng.standard_normal(shape)
        if ds.is_buffer(name):
            value = (recipe.bias_mean + 0.1 * draw).astype(np.float32)
        elif "norm" in name:
            value = (1.0 + 0.2 * draw).astype(ml_dtypes.bfloat16)
        else:
            std = next((s for part, s in recipe.own_std.items() if part in name), recipe.std)
            value = (std * draw).astype(ml_dtypes.bfloat16)
        weights[name] = value.astype(np.float64)
    for layer in ds.mtp_layers(recipe.config):  # a module's embedding and head are copies in released files
        at = f"model.layers.{layer}."
        weights[at + "embed_tokens.weight"] = weights["model.embed_tokens.weight"]
        weights[at + "shared_head.head.weight"] = weights["lm_head.weight"]
    return weights


def margin(output: ds.Output) -> float:
    return min((r.margin for r in output.routing.values()), default=np.inf)


def selected(recipe: Recipe, name: str) -> bool:
    """Of the experts' gradients only those of 0 to 2 are kept."""
    _, found, rest = name.partition(".mlp.experts.")
    few = not found or int(rest.split(".")[0]) <= 2
    return few and not ds.is_buffer(name) and bool(re.fullmatch(recipe.gradients, name))


def answers(recipe: Recipe, weights, rng) -> tuple[dict[str, np.ndarray], dict, bool]:
    """golden.safetensors, golden.json, and whether every choice in them is clear."""
    config = recipe.config
    ids = rng.integers(0, config["vocab_size"], size=(2, recipe.tokens), dtype=np.int32)
    prompt = rng.integers(0, config["vocab_size"], size=20, dtype=np.int32)
    continuation, lead = ds.greedy(config, weights, prompt, GREEDY_TOKENS)
    constants = ds.as_constants(weights)
    continued = ds.forward(config, constants, np.concatenate([prompt, continuation])[None])
    loss, gradients, output = ds.loss_and_gradients(config, weights, ids)
    norm = float(np.sqrt(sum((g * g).sum() for g in gradients.values())))
    everything = ds.forward(config, constants, ids, with_mtp=True)

    golden = {"input_ids": ids, "logits": output.logits.value, "prompt": prompt,
              "greedy": continuation, "greedy_nocache": continuation}
    golden |= {f"hidden.{i}": x.value[0] for i, x in enumerate(output.hidden)}
    for layer, routing in everything.routing.items():
        golden[f"router.{layer}.indices"] = routing.indices.astype(np.int32)
        golden[f"router.{layer}.weights"] = routing.weights.value
    summary = {"oracle": "tools/reference/deepseek_numpy.py, float64", "loss": loss, "grad_norm": norm,
               "router_margin": min(margin(everything), margin(continued)), "greedy_margin": lead}
    # A checkpoint with MTP keeps the gradients of its module's loss: the main loss is as in any other.
    if not everything.mtp_logits:
        golden |= {f"grad.{n}": gradients.get(n, np.zeros(v.shape)) for n, v in weights.items() if selected(recipe, n)}
    for depth, logits in enumerate(everything.mtp_logits, start=1):
        golden[f"mtp.{depth - 1}.logits"] = logits.value
        mtp_loss, mtp_gradients, _ = ds.loss_and_gradients(config, weights, ids, mtp_depth=depth)
        summary.setdefault("mtp_losses", []).append(mtp_loss)
        golden |= {f"mtp.{depth - 1}.grad.{n}": g for n, g in mtp_gradients.items() if selected(recipe, n)}
    if recipe.adamw:
        losses, norms, final = ds.adamw_run(config, weights, ids)
        summary |= {"adamw_losses": losses, "adamw_grad_norms": norms, "adamw_final_loss": final}
    clear = summary["router_margin"] > 1e-5 and lead > 1e-3
    return golden, {k: v for k, v in summary.items() if v != np.inf}, clear


def stored(name: str, value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32 if ds.is_buffer(name) else ml_dtypes.bfloat16, order="C")


def make(folder: Path, name: str, recipe: Recipe) -> None:
    for seed in range(1000):
        rng = np.random.default_rng([seed, *name.encode()])
        weights = random_weights(recipe, rng)
        golden, summary, clear = answers(recipe, weights, rng)
        if clear:
            break
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: stored(n, v) for n, v in weights.items()}
    # order: a transposed gradient is otherwise written as it lies in memory
    golden = {n: v if v.dtype == np.int32 else v.astype(np.float32, order="C") for n, v in golden.items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    (folder / "golden.safetensors").write_bytes(save(golden))
    (folder / "config.json").write_text(json.dumps(recipe.config, indent=1) + "\n")
    (folder / "golden.json").write_text(json.dumps({"seed": seed} | summary, indent=1) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:36} seed {seed:2}  loss {summary['loss']:.3f}  logits std {golden['logits'].std():.2f}  "
          f"margins {summary.get('router_margin', np.inf):.0e} {summary['greedy_margin']:.0e}  {size:9,} bytes")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", default=list(RECIPES), metavar="NAME")
    arguments.add_argument("--out", type=Path, default=DATA)
    arguments.add_argument("--all-gradients", action="store_true")
    chosen = arguments.parse_args()
    for name in chosen.names:
        recipe = RECIPES[name]
        make(chosen.out / name, name, replace(recipe, gradients=".*") if chosen.all_gradients else recipe)


if __name__ == "__main__":
    main()
