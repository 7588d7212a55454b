"""DeepSeek V1, V2 and V3 in float64 NumPy: the oracle for what no published implementation can be asked.

Written from the architecture reference and the papers, sharing nothing with the engine. It favours the naive form
everywhere: expanded attention, one loop over experts, no cache. Names are those of the checkpoints.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from autodiff import Var, backward, concat, log_softmax, scatter_rows, sigmoid, silu, softmax

LATENT_NORM_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
          "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


# ---------------------------------------------------------------------------------------------------- files

def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(data[start + begin:start + end], dtype=DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load_checkpoint(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and the weights in float64; FP8 blocks (128 x 128, the last ones partial) are multiplied out."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    stored = read_safetensors(folder / "model.safetensors")
    weights = {}
    for name, value in stored.items():
        if name.endswith("_scale_inv"):
            continue
        value = value.astype(np.float64)
        if (scale := stored.get(name + "_scale_inv")) is not None:
            blocks = np.repeat(np.repeat(scale.astype(np.float64), 128, axis=0), 128, axis=1)
            value = value * blocks[:value.shape[0], :value.shape[1]]
        weights[name] = value
    return config, weights


# ---------------------------------------------------------------------------------------------------- config

def rope_settings(config: dict) -> dict:
    """theta and scaling from either spelling: rope_parameters, or rope_theta and rope_scaling."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    return settings


def is_mla(config: dict) -> bool:
    return config["model_type"] != "deepseek"


def is_moe_layer(config: dict, layer: int) -> bool:
    return layer >= config["first_k_dense_replace"] and layer % (config.get("moe_layer_freq") or 1) == 0


def parameter_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, in the order of the model."""
    h, vocab = config["hidden_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, h)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= layer_shapes(config, layer)
    shapes["model.norm.weight"] = (h,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, h)
    for layer in mtp_layers(config):
        at = f"model.layers.{layer}."
        shapes |= {at + "embed_tokens.weight": (vocab, h), at + "enorm.weight": (h,), at + "hnorm.weight": (h,),
                   at + "eh_proj.weight": (h, 2 * h)}
        shapes |= layer_shapes(config, layer)
        shapes |= {at + "shared_head.norm.weight": (h,), at + "shared_head.head.weight": (vocab, h)}
    return shapes


def mtp_layers(config: dict) -> range:
    count = config["num_hidden_layers"]
    return range(count, count + (config.get("num_nextn_predict_layers") or 0))


def layer_shapes(config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    at, h = f"model.layers.{layer}.", config["hidden_size"]
    shapes = {at + "input_layernorm.weight": (h,)}
    shapes |= {at + "self_attn." + name: shape for name, shape in attention_shapes(config).items()}
    shapes[at + "post_attention_layernorm.weight"] = (h,)

    def mlp(prefix, width):
        return {f"{at}{prefix}.gate_proj.weight": (width, h), f"{at}{prefix}.up_proj.weight": (width, h),
                f"{at}{prefix}.down_proj.weight": (h, width)}

    if not is_moe_layer(config, layer):
        return shapes | mlp("mlp", config["intermediate_size"])
    experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
    shapes[at + "mlp.gate.weight"] = (experts, h)
    if config["model_type"] == "deepseek_v3":
        shapes[at + "mlp.gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        shapes |= mlp(f"mlp.experts.{expert}", width)
    if config.get("n_shared_experts"):
        shapes |= mlp("mlp.shared_experts", config["n_shared_experts"] * width)
    return shapes


def attention_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    h, n = config["hidden_size"], config["num_attention_heads"]
    if not is_mla(config):
        shapes = {f"{p}_proj.weight": (h, h) for p in "qkvo"}
        biased = [f"{p}_proj" for p in "qkvo"]
    else:
        d_n, d_r, d_v = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        r_q, r_kv = config.get("q_lora_rank"), config["kv_lora_rank"]
        if r_q:
            shapes = {"q_a_proj.weight": (r_q, h), "q_a_layernorm.weight": (r_q,),
                      "q_b_proj.weight": (n * (d_n + d_r), r_q)}
        else:
            shapes = {"q_proj.weight": (n * (d_n + d_r), h)}
        shapes |= {"kv_a_proj_with_mqa.weight": (r_kv + d_r, h), "kv_a_layernorm.weight": (r_kv,),
                   "kv_b_proj.weight": (n * (d_n + d_v), r_kv), "o_proj.weight": (h, n * d_v)}
        # The projections out of the residual stream into a latent, and the one back into it. Not q_proj.
        biased = (["q_a_proj"] if r_q else []) + ["kv_a_proj_with_mqa", "o_proj"]
    if config.get("attention_bias"):
        shapes |= {f"{p}.bias": shapes[f"{p}.weight"][:1] for p in biased}
    return shapes


# ---------------------------------------------------------------------------------------------------- rope

def mscale(factor: float, a: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * a * math.log(factor) + 1.0


def rope_tables(config: dict, d: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [tokens, d/2]. YaRN's magnitude is in them when mscale and mscale_all_dim differ."""
    s = rope_settings(config)
    theta = s["rope_theta"] ** (-2.0 * np.arange(d // 2) / d)
    magnitude = 1.0
    if s["rope_type"] == "yarn":
        correction = lambda rho: (d * math.log(s["original_max_position_embeddings"] / (2 * math.pi * rho))
                                  / (2 * math.log(s["rope_theta"])))
        low = max(math.floor(correction(s.get("beta_fast", 32))), 0)
        high = min(math.ceil(correction(s.get("beta_slow", 1))), d - 1)
        high += 0.001 if low == high else 0.0
        ramp = np.clip((np.arange(d // 2) - low) / (high - low), 0.0, 1.0)
        theta = theta * (1.0 - ramp) + theta / s["factor"] * ramp
        magnitude = mscale(s["factor"], s.get("mscale", 1.0)) / mscale(s["factor"], s.get("mscale_all_dim", 0.0))
    angles = np.arange(tokens)[:, None] * theta
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def rope(x: Var, tables, interleaved: bool) -> Var:
    """Rotates x [..., tokens, d]. The result lists first members of all pairs, then second ones: q and k alike."""
    cos, sin = tables
    half = x.shape[-1] // 2
    first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    a, b = x[first], x[second]
    return concat([a * cos - b * sin, a * sin + b * cos])


# ---------------------------------------------------------------------------------------------------- layers

def rms_norm(x: Var, weight: Var, eps: float) -> Var:
    return x * ((x * x).mean(axis=-1, keepdims=True) + eps) ** -0.5 * weight


def linear(x: Var, weights: dict[str, Var], name: str) -> Var:
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def attend(q: Var, k: Var, v: Var, scale: float) -> Var:
    """Causal attention on [batch, heads, tokens, d]; the result is [batch, tokens, heads * d_v]."""
    tokens = q.shape[2]
    mask = np.where(np.tri(tokens, dtype=bool), 0.0, -np.inf)
    p = softmax((q @ k.transpose(0, 1, 3, 2)) * scale + mask)
    return (p @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], tokens, -1)


def heads(x: Var, count: int) -> Var:
    """[batch, tokens, count * d] -> [batch, count, tokens, d]"""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(0, 2, 1, 3)


def mha(config: dict, w: dict[str, Var], at: str, x: Var) -> Var:
    """V1: ordinary attention, LLaMA's pairing (i, i + d/2) over the whole head."""
    n = config["num_attention_heads"]
    q, k, v = (heads(linear(x, w, f"{at}{p}_proj"), n) for p in "qkv")
    d = q.shape[-1]
    tables = rope_tables(config, d, x.shape[1])
    o = attend(rope(q, tables, False), rope(k, tables, False), v, d ** -0.5)
    return linear(o, w, at + "o_proj")


def mla(config: dict, w: dict[str, Var], at: str, x: Var) -> Var:
    """Multi-head latent attention, DeepSeek-V2 2.1, expanded form."""
    n, d_n, d_r = (config[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"))
    r_kv = config["kv_lora_rank"]
    if config.get("q_lora_rank"):
        c_q = rms_norm(linear(x, w, at + "q_a_proj"), w[at + "q_a_layernorm.weight"], LATENT_NORM_EPS)
        q = heads(linear(c_q, w, at + "q_b_proj"), n)
    else:
        q = heads(linear(x, w, at + "q_proj"), n)
    a = linear(x, w, at + "kv_a_proj_with_mqa")
    c = rms_norm(a[..., :r_kv], w[at + "kv_a_layernorm.weight"], LATENT_NORM_EPS)
    kv = heads(linear(c, w, at + "kv_b_proj"), n)

    tables = rope_tables(config, d_r, x.shape[1])
    q_r = rope(q[..., d_n:], tables, True)
    k_r = rope(heads(a[..., r_kv:], 1), tables, True) * np.ones((1, n, 1, 1))  # one rotated key for all heads
    scale = (d_n + d_r) ** -0.5
    s = rope_settings(config)
    if s["rope_type"] == "yarn" and s.get("mscale_all_dim"):
        scale *= mscale(s["factor"], s["mscale_all_dim"]) ** 2
    o = attend(concat([q[..., :d_n], q_r]), concat([kv[..., :d_n], k_r]), kv[..., d_n:], scale)
    return linear(o, w, at + "o_proj")


def swiglu(w: dict[str, Var], at: str, x: Var) -> Var:
    return linear(silu(linear(x, w, at + "gate_proj")) * linear(x, w, at + "up_proj"), w, at + "down_proj")


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest per row; of equals the lowest index."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


@dataclass
class Routing:
    indices: np.ndarray  # [tokens, K], ascending
    weights: Var         # [tokens, K]
    margin: float        # how far the closest choice of an expert or a group was from going the other way


def gap(scores: np.ndarray, k: int) -> float:
    """Smallest distance between the k-th and the next score over all rows."""
    ordered = -np.sort(-scores, axis=-1)
    gaps = ordered[..., k - 1] - ordered[..., k] if k < scores.shape[-1] else np.array([np.inf])
    return float(np.min(gaps[np.isfinite(gaps)], initial=np.inf))


def route(config: dict, w: dict[str, Var], at: str, x: Var) -> Routing:
    """x [tokens, h]. DeepSeek-V3 2.1.2; V2 2.2.2; DeepSeekMoE 3.1. The choice itself is not differentiated."""
    v3 = config["model_type"] == "deepseek_v3"
    scoring = config.get("scoring_func") or ("sigmoid" if v3 else "softmax")
    method = config.get("topk_method") or ("noaux_tc" if v3 else "greedy")
    k = config["num_experts_per_tok"]
    logits = x @ w[at + "gate.weight"].T
    scores = {"sigmoid": sigmoid, "softmax": softmax}[scoring](logits)
    choice, margin = scores.value, np.inf
    if method == "noaux_tc":
        choice = choice + w[at + "gate.e_score_correction_bias"].value
    groups, kept = config.get("n_group") or 1, config.get("topk_group") or 1
    if method != "greedy" and groups > 1:
        members = choice.reshape(len(choice), groups, -1)
        strongest = np.sort(members, axis=-1)[..., ::-1]
        group_scores = strongest[..., :2].sum(axis=-1) if method == "noaux_tc" else strongest[..., 0]
        margin = gap(group_scores, kept)
        keep = np.zeros(group_scores.shape, dtype=bool)
        np.put_along_axis(keep, top_k(group_scores, kept), True, axis=-1)
        choice = np.where(keep[..., None], members, -np.inf).reshape(choice.shape)
    indices = np.sort(top_k(choice, k), axis=-1)
    margin = min(margin, gap(choice, k))
    weights = scores[np.arange(len(indices))[:, None], indices]
    if config.get("norm_topk_prob"):
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return Routing(indices, weights * (config.get("routed_scaling_factor") or 1.0), margin)


def moe(config: dict, w: dict[str, Var], at: str, x: Var) -> tuple[Var, Routing]:
    """x [tokens, h]"""
    routing = route(config, w, at, x)
    y = swiglu(w, at + "shared_experts.", x) if config.get("n_shared_experts") else Var(np.zeros(x.shape))
    for expert in range(config["n_routed_experts"]):
        rows, slots = np.nonzero(routing.indices == expert)
        if len(rows):
            out = swiglu(w, f"{at}experts.{expert}.", x[rows]) * routing.weights[rows, slots].reshape(-1, 1)
            y = y + scatter_rows(out, rows, len(x.value))
    return y, routing


def decoder_layer(config: dict, w: dict[str, Var], layer: int, x: Var) -> tuple[Var, Routing | None]:
    at, eps = f"model.layers.{layer}.", config["rms_norm_eps"]
    attention = mla if is_mla(config) else mha
    x = x + attention(config, w, at + "self_attn.", rms_norm(x, w[at + "input_layernorm.weight"], eps))
    y = rms_norm(x, w[at + "post_attention_layernorm.weight"], eps).reshape(-1, x.shape[-1])
    if is_moe_layer(config, layer):
        y, routing = moe(config, w, at + "mlp.", y)
    else:
        y, routing = swiglu(w, at + "mlp.", y), None
    return x + y.reshape(*x.shape), routing


# ---------------------------------------------------------------------------------------------------- model

@dataclass
class Output:
    logits: Var                                  # [batch, tokens, vocab]
    hidden: list[Var]                            # L + 1 times [batch, tokens, h]; the last one after the final norm
    routing: dict[int, Routing] = field(default_factory=dict)
    mtp_logits: list[Var] = field(default_factory=list)  # depth k = 1...: [batch, tokens - k, vocab]


def forward(config: dict, w: dict[str, Var], ids: np.ndarray, with_mtp: bool = False) -> Output:
    """ids [batch, tokens]"""
    eps = config["rms_norm_eps"]
    embedding = w["model.embed_tokens.weight"]
    head = embedding if config.get("tie_word_embeddings") else w["lm_head.weight"]
    hidden, routing = [embedding[ids]], {}
    for layer in range(config["num_hidden_layers"]):
        x, chosen = decoder_layer(config, w, layer, hidden[-1])
        hidden.append(x)
        if chosen:
            routing[layer] = chosen
    hidden[-1] = rms_norm(hidden[-1], w["model.norm.weight"], eps)
    output = Output(hidden[-1] @ head.T, hidden, routing)

    # DeepSeek-V3 2.2. Released weights take the embedding's half first, and h^0 after the final norm.
    state = hidden[-1]
    for depth, layer in enumerate(mtp_layers(config) if with_mtp else [], start=1):
        at = f"model.layers.{layer}."
        state = state[:, :-1]
        pair = [rms_norm(embedding[ids[:, depth:]], w[at + "enorm.weight"], eps),
                rms_norm(state, w[at + "hnorm.weight"], eps)]
        state, chosen = decoder_layer(config, w, layer, concat(pair) @ w[at + "eh_proj.weight"].T)
        if chosen:
            routing[layer] = chosen
        output.mtp_logits.append(rms_norm(state, w[at + "shared_head.norm.weight"], eps) @ head.T)
    return output


def cross_entropy(logits: Var, ids: np.ndarray, ahead: int = 1) -> Var:
    """Mean over the positions i of logits that have a target ids[:, i + ahead]."""
    targets = ids[:, ahead:]
    batch, count = targets.shape
    at = (np.arange(batch)[:, None], np.arange(count)[None, :], targets)
    return -log_softmax(logits[:, :count])[at].mean()


def as_constants(weights: dict[str, np.ndarray]) -> dict[str, Var]:
    return {name: Var(value) for name, value in weights.items()}


def is_buffer(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def loss_and_gradients(config, weights, ids, mtp_depth: int = 0) -> tuple[float, dict[str, np.ndarray], Output]:
    """The mean next-token cross-entropy, or with mtp_depth k that of the k-th MTP module alone, without its weight."""
    w = {name: Var(value, tracked=not is_buffer(name)) for name, value in weights.items()}
    output = forward(config, w, ids, with_mtp=mtp_depth > 0)
    logits = output.mtp_logits[mtp_depth - 1] if mtp_depth else output.logits
    loss = cross_entropy(logits, ids, 1 + mtp_depth)
    backward(loss)
    gradients = {name: v.grad for name, v in w.items() if v.grad is not None}
    return float(loss.value), gradients, output


def greedy(config, weights, prompt, count: int) -> tuple[np.ndarray, float]:
    """`count` new ids, recomputed from scratch each time, and the smallest lead of a winner over the runner-up."""
    w, ids, lead = as_constants(weights), list(prompt), np.inf
    for _ in range(count):
        last = forward(config, w, np.array([ids])).logits.value[0, -1]
        lead = min(lead, gap(last, 1))
        ids.append(int(np.argmax(last)))
    return np.array(ids[len(prompt):], dtype=np.int32), float(lead)


def adamw_run(config, weights, ids, steps: int = 5) -> tuple[list[float], list[float], float]:
    """Losses, gradient norms before clipping, and the loss after the last step, all on one batch."""
    lr, beta1, beta2, eps, decay, clip = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0
    weights = dict(weights)
    first = {name: np.zeros(value.shape) for name, value in weights.items()}
    second = {name: np.zeros(value.shape) for name, value in weights.items()}
    losses, norms = [], []
    for step in range(1, steps + 1):
        loss, gradients, _ = loss_and_gradients(config, weights, ids)
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        losses.append(loss)
        norms.append(norm)
        for name, g in gradients.items():
            g = g * min(1.0, clip / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g * g
            update = first[name] / (1 - beta1 ** step) / (np.sqrt(second[name] / (1 - beta2 ** step)) + eps)
            shrink = 1 - lr * decay if g.ndim >= 2 else 1.0
            weights[name] = weights[name] * shrink - lr * update
    final = cross_entropy(forward(config, as_constants(weights), ids).logits, ids)
    return losses, norms, float(final.value)
