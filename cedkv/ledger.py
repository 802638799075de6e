"""Every metric, tag and artifact name in the log. The one place: whoever writes or reads the log imports from here.

Names without a slash are kept from the first plan of Phase 3; a prefix before a slash groups charts. Units stand beside
each name. All values are logged as last-value or per-step metrics of an MLflow run.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = "1"
"""Version of everything in this file and of the artifacts' layout. A gate judges only the version it knows."""

# ------------------------------------------------------------------------------------------------ atom types
KEY: Final = "key"
VALUE: Final = "value"
CONTENT: Final = "content"
NUMBER: Final = "number"
FUNCTION: Final = "function"
DELIMITER: Final = "delimiter"
ATOM_TYPES: Final = (KEY, VALUE, CONTENT, NUMBER, FUNCTION, DELIMITER)

# ------------------------------------------------------------------------------------- metrics, at every step
LOSS: Final = "phase3_loss"  # nats, the weighted total
LOSS_ON: Final = "phase3_loss_on"  # nats
LOSS_OFF: Final = "phase3_loss_off"  # nats, CVaR over the minibatch of the configured train source
LOSS_STR: Final = "phase3_loss_str"
LAMBDA_OFF: Final = "lambda_off"
TOPK: Final = "topk"  # candidates a slot may still mix
PERF_PREFIX: Final = "perf/"  # how long things took: no two runs agree on it
STEPS_PER_SECOND: Final = "perf/steps_per_second"
SECONDS_PREFIX: Final = "perf/seconds_"  # + part; wall time so far, at eval ticks and at the end
SECONDS_TOTAL: Final = "perf/seconds_total"  # from the start of the run to this entry; the parts add up to it
SYSTEM_PREFIX: Final = "system/"  # + what; at eval ticks, where tracking.system_metrics asks for them
PARTS: Final = (
    "load",  # data, model, encoding
    "teacher",  # teacher and base answer the ON prompts
    "capture",  # atoms, looks, anchors
    "trunk",  # the fixed prompts up to the first injected layer
    "train",  # optimiser steps
    "hard_pool",  # mining
    "tick",  # the stress evaluation and what follows from it
    "verify",  # a constraint warning by plain passes
    "log",  # waiting for the store: opening and closing the run, writing to it
    "finish",  # tables, memory, traces; the report and the verdict, where they are shown and not logged
)
"""What a run's wall time is spent on."""
GRAD_NORM: Final = "train/grad_norm"
EFFECTIVE_POPULATION_TAIL: Final = "train/effective_population_tail"  # tail_fraction * pool / OFF prompts
NONFINITE_STEPS: Final = "train/nonfinite_steps"  # count so far
ATOM_MASS_PREFIX: Final = "atom_mass/"
DELIMITER_SLOT_MAX: Final = "atom_mass/delimiter_slot_max"  # largest delimiter mass of a slot, after the cap
TEACHER_READS_PREFIX: Final = "teacher_reads/"  # share of ON attention on the document by atom type
RESIDUAL_SHARE: Final = "value_residual_share"  # of values, learned beside the mixture, 0 to 1, at eval ticks
SLOT_MASS_ON: Final = "slot_mass/on"  # attention mass on the slots, ON prompts
SLOT_MASS_OFF: Final = "slot_mass/off"

# ---------------------------------------------------------------------- metrics, at every eval tick (all nats)
P99_RAW: Final = "p99_raw"
P99_EMA: Final = "p99_ema"
P99_STRESS: Final = "off_delta_p99_stress"
P99_TYPICAL: Final = "off_delta_p99_typical"
MEAN_STRESS: Final = "off_delta_mean_stress"
MAX_STRESS: Final = "off_delta_max_stress"
P99_UPPER: Final = "off_delta_p99_upper"  # distribution-free 95 % upper bound
ON_LOSS_FIXED: Final = "on_loss_fixed"  # ON loss of a fixed sample of ON training prompts
WARN_CONSECUTIVE: Final = "warn/consecutive"  # ticks in a row over the limit
WARN_TRIGGERED: Final = "warn/triggered"  # 0 or 1
WARN_DELIMITER_SLOTS: Final = "warn/delimiter_slots"  # slots near the cap on delimiters, at every step
WARN_DELIMITER_STATES: Final = "warn/delimiter_states"  # states whose mean mass is
PROXY_USED: Final = "proxy/used"  # 1 where the step's losses hold a proxy, 0 where they come from real passes
PROXY_OFF_PEARSON: Final = "proxy/off_pearson"  # of the logs, proxy_off and measured KL, prompts × states
PROXY_OFF_SPEARMAN: Final = "proxy/off_spearman"
PROXY_STRESS_SPEARMAN: Final = "proxy/stress_spearman"  # of the maxima over states
PROXY_P99: Final = "proxy/p99"  # of the maxima over states, beside off_delta_p99_stress; no unit
PROXY_ON_PEARSON: Final = (
    "proxy/on_pearson"  # of the logs, proxy_on and KL(teacher || student), ON training prompts
)
PROXY_ON_SPEARMAN: Final = "proxy/on_spearman"
PROXY_ON_ANSWER_SPEARMAN: Final = (
    "proxy/on_answer_spearman"  # with the answer's log-probability: negative is good
)
PROXY_RECALL: Final = (
    "proxy/pool_recall"  # share of the hardest 1/32 of the stress set among those the proxy ranks first
)

# ---------------------------------------------------------------------------------- metrics, once at the end
DUAL_STD: Final = "dual/lambda_std"  # of lambda_off over the last third of the updates
DUAL_PEAK_TO_PEAK: Final = "dual/lambda_peak_to_peak"
DUAL_SETTLING_TICK: Final = "dual/settling_tick"  # from which update on lambda_off stays near its last value
DUAL_SETTLING_SHARE: Final = "dual/settling_share"  # that update, as a share of all of them
DUAL_VIOLATION: Final = "dual/violation"  # nats · steps, p99_raw over its limit
DUAL_TRACKING: Final = (
    "dual/tracking"  # mean move of lambda_off per update towards what p99_raw asks; 0: dead
)
NULL_INJECTION_MAX_KL: Final = "null_injection_max_kl"  # nats
TEACHER_CACHE_MAX_KL: Final = "teacher_cache_max_kl"  # nats
SHORTCUT_MAX_KL: Final = (
    "shortcut_max_kl"  # nats (relative over one nat), fixed prompts' passes against plain ones
)
TEACHER_MAX_ERROR: Final = (
    "teacher_max_error"  # nats, the teacher's answers against whole passes on a probe, mean under the teacher
)
ON_ACC_BASE: Final = "on_acc_base"  # share of ON evaluation prompts, 0 to 1
ON_ACC_STUDENT: Final = "on_acc_student"
ON_ACC_TEACHER: Final = "on_acc_teacher"
ON_GAIN: Final = "on_gain"  # on_acc_student - on_acc_base
ON_GAIN_RECOVERED: Final = "on_gain_recovered"  # on_gain / (on_acc_teacher - on_acc_base)
ON_LOGP_GAIN: Final = "on_logp_gain"  # nats per answer
DELTA_ON_MEAN: Final = "delta_on_mean"  # nats per token, mean KL(student || base)
REL_KL_TO_TEACHER: Final = "rel_kl_to_teacher"  # mean KL(teacher || student) / mean KL(teacher || base)

# ------------------------------------------------------------------------------ metrics that a verdict writes back
GATE_A_PASSED: Final = "gate/a"  # 1 or 0
GATE_B_PASSED: Final = "gate/b"
GATE_MARGIN_PREFIX: Final = "gate_margin/"  # + metric; in its unit, positive on the passing side

# ------------------------------------------------------------------- metrics of a study of settings, and of its trials
TUNE_OBJECTIVE: Final = "tune/objective"  # on a trial's runs; on the study's run at the trial's number
TUNE_BEST: Final = "tune/best_objective"  # on the study's run: the best feasible one so far
TUNE_IMPORTANCE_PREFIX: Final = (
    "tune/importance/"  # + key, on the study's run: its share in what makes trials good
)
TUNE_BROKEN_PREFIX: Final = (
    "tune/broken/"  # + metric, on a trial's runs; relative to the limit, 0 or less where it is kept
)

# ------------------------------------------------------------------------------------------------------ tags
TAG_SCHEMA: Final = "cedkv.schema"
TAG_PHASE: Final = "cedkv.phase"
TAG_CONFIG_HASH: Final = "cedkv.config_hash"
TAG_GIT_COMMIT: Final = "cedkv.git_commit"
TAG_GIT_DIRTY: Final = "cedkv.git_dirty"
TAG_MODEL: Final = "cedkv.model_fingerprint"
TAG_WORLD_SIZE: Final = "cedkv.world_size"
TAG_POLICY_MODE: Final = "cedkv.policy_mode"
TAG_STRICT_HF: Final = "cedkv.strict_hf"
TAG_ENVIRONMENT: Final = "cedkv.environment"
TAG_SHORTCUT: Final = (
    "cedkv.shortcut"  # what passes over fixed prompts leave out: plain, trunk, tail or merge
)
TAG_TEACHER: Final = (
    "cedkv.teacher"  # how it read: cached (each document once) or whole (anew for every prompt)
)
TAG_KEPT: Final = "cedkv.kept"  # the memory a run ended with: `last`, or `best_feasible@<step>`
TAG_DELIMITER: Final = "cedkv.warn.delimiter_first_step"  # when a slot or state first came near the cap
TAG_ERROR: Final = "cedkv.error"
TAG_RESUMED: Final = "cedkv.resumed"  # the steps that were done, each time the run went on, e.g. `25, 60`
TAG_CHANGED: Final = "cedkv.changed"  # JSON: what a resumed run was allowed to change, by name [was, is]
CHANGES_NO_NUMBER: Final = frozenset({TAG_WORLD_SIZE})
"""What a resumed run may change and still be one run: its numbers are the same bit for bit."""
TAG_SOURCE_LOSS: Final = (
    "cedkv.source.loss"  # hf, proxy, blend or auto; `auto, hf from step <n>` where it was left
)
TAG_SOURCE_P99: Final = "cedkv.source.off_delta_p99_stress"
TAG_SOURCE_LAMBDA: Final = "cedkv.source.lambda_off"
HASH_TAG_PREFIX: Final = "cedkv.hash."  # + part of the data
TAG_HASH_DOCUMENTS: Final = "cedkv.hash.documents"
TAG_HASH_ON_TRAIN: Final = "cedkv.hash.on_train"
TAG_HASH_ON_EVAL: Final = "cedkv.hash.on_eval"
TAG_HASH_OFF_TRAIN: Final = "cedkv.hash.off_train"
TAG_HASH_STRESS: Final = "cedkv.hash.stress"
TAG_HASH_SEALED: Final = "cedkv.hash.sealed"
TAG_REPRODUCES: Final = "cedkv.reproduces"  # run id of the run that this one repeats
TAG_EXPLORE_DEFAULT: Final = "phase3_explore"  # the configured name is phase3.milestone.explore.flag

# What a study of settings puts on its own run and on those of its trials (children of it in MLflow's pages).
TAG_PARENT: Final = "mlflow.parentRunId"
TAG_STUDY: Final = "cedkv.study"  # the study's name; the study's own run has it and no TAG_TRIAL
TAG_SCALE: Final = "cedkv.scale"  # of a study that goes on at larger scales: which one, from 1
TAG_TRIAL: Final = "cedkv.trial"  # the trial's number within its scale; `baseline` for the Phase 2 runs

# What a verdict writes back. No verdict reads these.
TAG_VERDICT: Final = "cedkv.verdict"
TAG_GATE_A: Final = "cedkv.gate_a"
TAG_GATE_B: Final = "cedkv.gate_b"
TAG_MILESTONE: Final = "cedkv.milestone"
TAG_REPRODUCED: Final = "cedkv.reproduced"
TAG_CERTIFIED: Final = "cedkv.certified"
TAG_DESCRIPTION: Final = "mlflow.note.content"  # what the MLflow UI shows as the run's description

# What people write back.
ACKNOWLEDGED_PREFIX: Final = "cedkv.acknowledged."  # + warning rule; value: JSON with a note

# Tags of the experiment: append-only ledgers, one tag per entry, so that two writers never meet.
EXPLORED_PREFIX: Final = "cedkv.explored/"  # + run id; value: start time in ms
CERTIFIED_PREFIX: Final = "cedkv.certification/"  # + attempt id; value: JSON

SOURCE_FIXED: Final = "fixed_stress_eval"
"""The one source a gate and the dual accept."""
TRUE: Final = "true"
PHASE_BASELINE: Final = "2"
PHASE_TRAINED: Final = "3"

# ------------------------------------------------------------------------------------------------- artifacts
CONFIG_RESOLVED: Final = "config/resolved.yaml"
STRESS_SET: Final = "data/stress_set.jsonl"
DATA_SPEC: Final = "data/spec.json"
TABLE_STRESS: Final = "tables/off_stress.jsonl"
TABLE_ON: Final = "tables/on_eval.jsonl"
STRESS_TOP: Final = "off_stress_top.json"
LAMBDA_TRACE: Final = "lambda_off_trace.json"
TOPK_TRACE: Final = "topk_schedule_trace.json"
LOSS_CURVE: Final = "loss_curve.json"
WARN_TRACE: Final = "phase3_constraint_warn_trace.json"
ATOM_TYPE_MASS: Final = "atom_type_mass.json"
PROXY_SCATTER: Final = "proxy_scatter.jsonl"
DELIMITER_WARNINGS: Final = "delimiter_warnings.jsonl"
DELIMITER_SLOTS: Final = "delimiter_slot_mass.jsonl"  # at every eval tick, each slot of each state
MEMORY_TENSORS: Final = "memory/memory.safetensors"
MEMORY_META: Final = "memory/memory.json"
REPORT_MARKDOWN: Final = "report/report.md"
REPORT_JSON: Final = "report/report.json"
REPORT_HTML: Final = "report/report.html"  # the pages of dashboards/, for this run alone
GATE_REPORT_JSON: Final = "gate_report.json"
GATE_REPORT_MARKDOWN: Final = "gate_report.md"
CERTIFICATE: Final = "certification/certificate.json"
TUNE_TRIALS: Final = (
    "tune/trials.jsonl"  # of a study's own run: every trial of the search with its keys, score and runs
)
TUNE_CONFIRMED: Final = "tune/confirmed.jsonl"  # the best ones at the larger scales, in the same way
TUNE_SPEC: Final = "tune/spec.yaml"  # what is searched, minimised and kept
TUNE_BEST_CONFIG: Final = "tune/best.yaml"  # the best configuration, ready to run


def atom_mass(atom_type: str) -> str:
    """Metric name of the mixture mass on one atom type (mean over slots, 0 to 1)."""
    if atom_type not in ATOM_TYPES:
        raise ValueError(f"atom type {atom_type!r} is not one of {', '.join(ATOM_TYPES)}")
    return ATOM_MASS_PREFIX + atom_type


def seconds(part: str) -> str:
    """Metric name of the wall time one of `PARTS` took, in seconds, e.g. ``seconds("tick")``."""
    if part not in PARTS:
        raise ValueError(f"part {part!r} is not one of {', '.join(PARTS)}")
    return SECONDS_PREFIX + part
