"""The Python API, all of it: train a memory, judge its run, use it, measure it on prompts of your own.

from cedkv.api import Memory

memory = Memory.load("mymemory")
with memory.attach(model, state="mill"):
    model.generate(**inputs)
"""

from __future__ import annotations

from cedkv.api.evaluation import Evaluation, evaluate
from cedkv.api.memory import Attached, Memory
from cedkv.api.runs import judge, train

__all__ = ["Attached", "Evaluation", "Memory", "evaluate", "judge", "train"]
