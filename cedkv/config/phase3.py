"""The keys under ``phase3``: what is trained, how, and what it is judged by."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cedkv.config.base import Count, Listed, NonNegative, Positive, Section, Seed, Share, section
from cedkv.config.scope import Scope
from cedkv.ledger import ATOM_TYPES

AtomType = Literal["key", "value", "content", "number", "function", "delimiter"]
OffSource = Literal["hard_pool", "fixed_stress_eval"]


def _all_types(value: Any) -> Any:
    return ATOM_TYPES if value == "all" else value


class LayerScope(Section):
    mixture: Scope = "top25"
    """layers whose slots mix candidates; within `injection`"""
    injection: Scope = "top25"
    """layers the slots are injected into: `all`, `full_attention`, `topNN` or a list of layer numbers"""


class Memory(Section):
    slots: Count = 8
    """slots of one document (key/value pairs per layer and kv head)"""
    sink_slots: Annotated[int, Field(ge=0)] = 0
    """extra anchored slots: the document's own attention sinks, its first tokens"""


class KAnchor(Section):
    policy: Literal["warm_start_fixed"] = "warm_start_fixed"
    """the key of a slot is chosen once, at warm start, and never changes"""
    share: Literal["shared", "layer", "head"] = "shared"
    """one anchor of a slot for all layers and heads, one per layer, or one per layer and kv head; `mix.share` is as fine or finer"""


class Mix(Section):
    mode: Literal["v_only", "kv", "anchor"] = "v_only"
    """what is mixed: values, keys and values, or nothing (Phase 2)"""
    k_anchor: KAnchor = section(KAnchor)
    share: Literal["shared", "layer", "head"] = "shared"
    """one mixture for all layers, one per layer, or one per layer and kv head"""
    slot_gate: Literal["none", "affine"] = "none"
    """`affine`: a learned gain and bias on the slots' attention scores"""
    value_residual: Literal["none", "learned"] = "none"
    """`learned`: a term of its own on the value of every slot at the mixture's layers, from 0 on; keys stay as they are"""
    gate_share: Literal["shared", "layer", "head"] = "head"
    """what is learned of a slot's gate: one for all layers and heads, one per layer, or one per layer and head"""


class Delimiter(Section):
    mass_cap: Annotated[float, Field(gt=0, le=1)] = 0.15
    """largest share of one slot's mixture on delimiters"""
    mass_penalty: NonNegative = 0.05
    """weight, within `L_str`, of the mean mass over the cap"""
    warn_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """warn where the delimiter mass of a slot or of a state reaches this share of `mass_cap`"""
    apply_stage: Literal["post_topk_renorm_per_slot"] = "post_topk_renorm_per_slot"
    """the cap acts per slot, after top-k and renormalisation"""


class Candidate(Section):
    pool_size: Count = 32
    """atoms a slot may mix"""
    atom_types: Annotated[Listed[AtomType], BeforeValidator(_all_types), Field(min_length=1)] = ATOM_TYPES
    """`all`, or the types that may be candidates"""
    special_tokens: Literal["delimiter_only"] = "delimiter_only"
    """of special and structural tokens only delimiters may be candidates"""
    delimiter: Delimiter = section(Delimiter)


class GateWarmStart(Section):
    start: Literal["measured", "identity"] = "measured"
    """`measured`: from the scores of ON and OFF training prompts; `identity`: gain 1, bias 0"""
    on_log_odds: float = 3.0
    """measured: log-odds of a slot against the prompt's own tokens for its own questions, at least, in nats"""
    off_log_odds: float = -1.5
    """measured: the same for every OFF training prompt, at most"""
    off_share: Share = 0.06
    """measured: share of the OFF training prompts that all slots together may give up, each an equal part"""
    max_gain: Annotated[float, Field(ge=1)] = 2.5
    """measured: largest gain to start with"""


class WarmStart(Section):
    anti_steer_strength: NonNegative = 0.2
    """how much OFF attention mass counts against an anchor"""
    gate: GateWarmStart = section(GateWarmStart)


class OnLoss(Section):
    type: Literal["kl", "answer_nll"] = "kl"
    """KL(teacher || student) over the answer tokens, or the answer's negative log-likelihood"""


class OffLoss(Section):
    type: Literal["cvar"] = "cvar"
    """mean of the worst share of the minibatch"""
    cvar_tail_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """that share; exact when it is no whole number of prompts"""
    train_source: OffSource = "hard_pool"
    """prompts of the OFF loss; `fixed_stress_eval` only with `policy_mode: debug`"""
    constraint_source: OffSource = "fixed_stress_eval"
    """prompts of the constraint; `hard_pool` only in debug and with the override"""
    hard_pool_size: Count = 64
    """hardest OFF training prompts kept for the minibatches"""
    prerank: Count | None = None
    """mine among `prerank · hard_pool_size` prompts that a proxy ranks first; null: among all OFF training prompts"""


class Loss(Section):
    lambda_on: NonNegative = 1.0
    """weight of the ON loss"""
    lambda_off: NonNegative = 2.0
    """start weight of the OFF loss; the dual moves it"""
    lambda_str: NonNegative = 0.1
    """weight of the structural loss"""
    source: Literal["hf", "proxy", "blend", "auto"] = "hf"
    """where ON and OFF losses come from: real passes, proxies from cached attention, both, or proxies while they are good"""
    blend: Share = 0.5
    """`blend`: share of the measured losses; the rest are proxies"""
    proxy_min_spearman: Annotated[float, Field(ge=-1, le=1)] = 0.8
    """`auto`: rank correlation of proxy and measured KL under which proxies are left for good"""
    on: OnLoss = section(OnLoss)
    off: OffLoss = section(OffLoss)


class Dual(Section):
    metric_source: OffSource = "fixed_stress_eval"
    """prompts the dual reads its p99 from; `hard_pool` only in debug and with the override"""
    controller: Literal["integral", "pi"] = "integral"
    """`integral`: as the plan of Phase 3 says; `pi`: with a term for the change of the averaged p99, which damps"""
    eta: Positive = 0.05
    """step size per nat over the threshold"""
    gain_p: NonNegative | None = None
    """`pi`: weight of the change; left out: `eta · ema_beta / (1 − ema_beta)`, which cancels the average's lag"""
    setpoint_margin: NonNegative = 0.0
    """nats under `thresholds.off_delta_p99_max` that λ_off aims at"""
    ema_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """memory of the averaged p99"""
    update_every: Count = 5
    """steps between eval ticks, at which the fixed stress eval runs and λ_off moves"""
    lambda_min: NonNegative = 0.0
    """smallest λ_off"""
    lambda_max: NonNegative = 10.0
    """largest λ_off"""
    delta_clip: Positive = 0.1
    """largest change of λ_off per update"""


class LambdaOff(Section):
    dual: Dual = section(Dual)


class ConstraintWarn(Section):
    enabled: bool = True
    """watch the constraint at eval ticks"""
    patience_eval_ticks: Count = 3
    """ticks in a row over the limit that trigger"""
    margin: NonNegative = 0.0
    """nats over `thresholds.off_delta_p99_max` that are tolerated"""
    eval_every: Count = 1
    """look at every n-th eval tick"""
    action: Literal["warn", "early_stop", "abort"] = "warn"
    """what a confirmed trigger does: log, keep the best feasible memory and stop, or end FAILED"""


class Train(Section):
    steps: Count = 200
    """optimiser steps"""
    lr: Positive = 0.05
    """Adam's learning rate for the mixture logits"""
    gate_lr: Positive = 0.05
    """Adam's learning rate for the slots' gains (their logarithms) and biases"""
    residual_lr: Positive = 0.02
    """Adam's learning rate for what is learned beside the mixture on the slots' values"""
    nonfinite_patience: Count = 5
    """steps in a row whose loss or gradient is not finite (each is skipped) before the run is aborted"""
    seed: Seed = 3407
    """seed of minibatches and initialisation"""
    on_batch: Count = 16
    """ON prompts per step"""
    off_batch: Count = 16
    """OFF prompts per step, drawn from the hard pool"""
    batch_rows: Count = 64
    """prompts per pass with gradients: what a step needs of memory, and what several processes share a step by"""
    keep: Literal["best_feasible", "last"] = "best_feasible"
    """memory a run ends with: of the eval ticks with p99 within its limit the one with the lowest ON loss, else the last"""
    topk_schedule: Annotated[Listed[Count], Field(min_length=1)] = (32, 16, 8, 4)
    """candidates a slot may still mix, stage by stage; never growing"""
    topk_milestones: Annotated[Listed[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)] = (
        0.0,
        0.25,
        0.6,
        0.85,
    )
    """share of the steps at which each stage begins; the first is 0"""
    lambda_off: LambdaOff = section(LambdaOff)
    constraint_warn: ConstraintWarn = section(ConstraintWarn)
    hard_pool_refresh: Count = Field(default_factory=lambda data: data["lambda_off"].dual.update_every)
    """steps between minings of the hard pool; left out: as `lambda_off.dual.update_every`"""


class Thresholds(Section):
    on_gain_min: Share = 0.02
    """Gate A: accuracy the student gains over the base on ON prompts, at least"""
    off_delta_p99_max: Positive = 0.05
    """Gate B: p99 of the stress KL, in nats, at most; also the dual's threshold"""
    delta_on_min: NonNegative = 0.01
    """Gate A: mean KL(student || base) on ON prompts, in nats, at least"""
    teacher_min_on_acc: Share = 0.2
    """Gate A: the teacher's ON accuracy, below which the evaluation itself is invalid"""
    rel_kl_to_teacher_max: Positive = 1.0
    """Gate A: KL(teacher || student) relative to KL(teacher || base), at most"""
    teacher_cache_kl_max: NonNegative = 1e-4
    """Gate A: how far, in nats, the whole document injected at all layers may be from the teacher"""
    certified: bool = False
    """Gate B judges the 95 % upper bound of the p99 instead of the p99"""


class OffFixedStress(Section):
    size: Count = 2048
    """distinct prompts of the fixed stress eval"""
    seed: Seed = 3407
    """seed of its one sampling"""
    sampling: Literal["once_per_experiment"] = "once_per_experiment"
    """sampled when a run starts and never again"""
    definition: Literal["phase2_stress_compatible"] = "phase2_stress_compatible"
    """stress of a prompt: the largest KL(student || base) over all states"""


class OffSealed(Section):
    size: Annotated[int, Field(ge=0)] = 8192
    """prompts that only a certification opens; 0: none are set aside"""


class Eval(Section):
    on_samples: Count = 64
    """documents, one state each, each with its own ON prompts"""
    off_samples: Count = 256
    """OFF training prompts"""
    repro_runs: Annotated[int, Field(ge=2)] = 2
    """runs that must agree before a result counts as reproduced"""
    batch_rows: Count = 256
    """rows (prompt × state) per forward pass"""
    trunk_memory_gib: NonNegative = 4.0
    """memory for what passes over fixed prompts share, in GiB; what is over lies in a file in the temporary folder"""
    near_miss_share: Annotated[float, Field(ge=0.25, le=1)] = 0.25
    """share of the stress set that are near misses of the documents in the bank, where prompts are generated"""
    off_fixed_stress: OffFixedStress = section(OffFixedStress)
    off_sealed: OffSealed = section(OffSealed)


class Certification(Section):
    delta: Annotated[float, Field(gt=0, le=0.05)] = 0.05
    """chance of a false certificate over all attempts of an experiment; each attempt spends `delta / max_attempts`"""
    max_attempts: Count = 5
    """openings of the sealed set that share `delta`; crashed ones count"""


class Reporting(Section):
    atom_type_mass: bool = True
    """log the mixture mass by atom type"""


class Explore(Section):
    enabled: bool = True
    """whether the exploration milestone is judged"""
    flag: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "phase3_explore"
    """tag that marks a run as exploratory (`--explore` sets it)"""
    max_runs: Count = 5
    """exploratory runs of an experiment that may be judged"""


class Milestone(Section):
    explore: Explore = section(Explore)


class Runtime(Section):
    policy_mode: Literal["prod", "debug"] = "prod"
    """prod refuses sources other than the fixed stress eval; `CI=true` forces prod"""
    debug_allow_nonfixed_constraint_sources: bool = False
    """in debug: allow the hard pool as constraint or dual source"""
    strict_hf: bool = False
    """every number from a real Hugging Face forward pass (`--phase3-strict-hf`)"""


class Phase3(Section):
    layer_scope: LayerScope = section(LayerScope)
    memory: Memory = section(Memory)
    mix: Mix = section(Mix)
    candidate: Candidate = section(Candidate)
    warm_start: WarmStart = section(WarmStart)
    loss: Loss = section(Loss)
    train: Train = section(Train)
    thresholds: Thresholds = section(Thresholds)
    eval: Eval = section(Eval)
    reporting: Reporting = section(Reporting)
    milestone: Milestone = section(Milestone)
    certification: Certification = section(Certification)
    runtime: Runtime = section(Runtime)
