"""The team that `accelerate launch` (or `torchrun`) started, over torch.distributed: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from cedkv.core.errors import UserError
from cedkv.core.team import ALONE, LostProcessError, Team, bits
from cedkv.models.load import kept_to_cpu

PIECE = 1 << 24
"""Numbers that are exchanged at once: what lies on a CPU passes a GPU in pieces."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one. One that dies is noticed at once; this is for one that stands still."""


class Launched(Team):
    """The processes of a launch."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._device = device  # where the backend can add

    def _merge(self, part: Tensor) -> None:
        for words in bits(part).split(PIECE):
            wire = words.to(self._device)
            try:
                dist.all_reduce(wire)
            except RuntimeError as error:
                raise LostProcessError(
                    f"process {self.rank} of {self.size} waited for another one that is gone or stands still: see what that "
                    "one says"
                ) from error
            if wire is not words:
                words.copy_(wire)


def join(env: Mapping[str, str]) -> Team:
    """The team of this launch; `ALONE` where one process was started. Joining twice gives the same team.

    Raises:
        UserError: a launch that did not come about as it was asked for.
    """
    wanted = env.get("WORLD_SIZE", "1")
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UserError(
            f"WORLD_SIZE is {wanted!r}: a launcher sets it to the number of processes; unset it, or launch with accelerate"
        )
    if int(wanted) == 1:
        return ALONE
    if "MASTER_ADDR" not in env:
        raise UserError(
            f"WORLD_SIZE is {wanted}, but nothing says where the processes meet (MASTER_ADDR): launch with accelerate, or unset "
            "WORLD_SIZE"
        )
    on_gpus = torch.cuda.is_available() and not kept_to_cpu(env)
    here = int(env.get("LOCAL_WORLD_SIZE", wanted))
    if on_gpus and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes were launched on a machine with {torch.cuda.device_count()} GPUs, and each needs one of its "
            f"own: launch {torch.cuda.device_count()}, or set ACCELERATE_USE_CPU=true to train on CPUs"
        )
    if not dist.is_initialized():
        state = PartialState(cpu=not on_gpus, timeout=PATIENCE)
        if state.num_processes != int(wanted):
            raise UserError(
                f"{wanted} processes were launched, but accelerate made a group of {state.num_processes}: launch with one of "
                "the files in configs/accelerate/"
            )
    return Launched(torch.device("cuda", torch.cuda.current_device()) if on_gpus else torch.device("cpu"))


def stand_alone(env: Mapping[str, str]) -> None:
    """Be no part of a team: a process of a launch that works for itself, on a GPU of its own where there are some."""
    here = env.get("LOCAL_RANK", "0")
    if here.isdecimal() and torch.cuda.is_available() and not kept_to_cpu(env):
        torch.cuda.set_device(int(here) % torch.cuda.device_count())


def leave() -> None:
    """Part from the other processes, after a run that ended well."""
    if dist.is_initialized():
        dist.destroy_process_group()
