from __future__ import annotations

import torch

from cedkv.bench.memory import peak_bytes

CPU = torch.device("cpu")


def test_the_peak_is_that_of_known_tensors() -> None:
    def run() -> None:
        first = torch.empty(1 << 20)  # 4 MiB
        second = torch.empty(1 << 19)  # 2 MiB beside it: the peak
        del first
        third = torch.empty(1 << 18)
        del second, third

    assert peak_bytes(run, CPU) == 6 << 20


def test_what_lay_there_before_is_not_counted() -> None:
    before = torch.empty(1 << 20)
    assert peak_bytes(lambda: before.mul_(1.0), CPU) < 1 << 20
