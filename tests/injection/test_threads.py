"""One model in several threads, each with a memory of its own or none: nobody gets another one's, and nobody's is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import pytest
import torch

from cedkv.core.errors import UserError
from cedkv.injection import inject

ROUNDS = 25


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.fresh("qwen3")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_threads_with_a_memory_each_get_their_own_bit_for_bit(model, tiny):
    """Blocks are entered and left all the time: the last one out must not take the memory from those inside."""
    ids, memory = tiny.tokens(2, 9), tiny.memory(model, states=3)
    chosen = [*(memory.select(torch.tensor([n])) for n in range(3)), None]
    wanted = []
    for states in chosen:
        with inject(model, states):
            wanted.append(logits(model, ids))
    together = Barrier(len(chosen))

    def work(n: int) -> int:
        wrong = 0
        together.wait()
        for _ in range(ROUNDS):
            with inject(model, chosen[n]):
                wrong += not torch.equal(logits(model, ids), wanted[n])
        return wrong

    with ThreadPoolExecutor(len(chosen)) as pool:
        assert list(pool.map(work, range(len(chosen)))) == [0] * len(chosen)
    assert model.config._attn_implementation == "sdpa"


def test_a_thread_in_no_block_is_refused_while_another_has_a_memory_attached(model, tiny):
    """It would silently get the bare model: threads do not inherit what `with` blocks said."""
    ids, found = tiny.tokens(1, 5), []

    def call() -> None:
        try:
            found.append(logits(model, ids))
        except UserError as error:
            found.append(str(error))

    with inject(model, tiny.memory(model)):
        stranger = Thread(target=call)
        stranger.start()
        stranger.join()
    assert "block of this thread's own" in found[0]
    call()
    assert torch.equal(found[1], logits(model, ids))


def test_the_bare_model_in_a_thread_of_its_own_is_bitwise_bare(model, tiny):
    ids = tiny.tokens(2, 9)
    bare, inside, done, found = logits(model, ids), Event(), Event(), []

    def hold() -> None:
        with inject(model, tiny.memory(model)):
            inside.set()
            done.wait(30)

    holder = Thread(target=hold)
    holder.start()
    inside.wait(30)
    with inject(model, None):
        found.append(logits(model, ids))
    done.set()
    holder.join()
    assert torch.equal(found[0], bare)


def test_a_bare_block_within_a_memorys_block_is_bitwise_bare(model, tiny):
    ids, memory = tiny.tokens(2, 9), tiny.memory(model)
    bare = logits(model, ids)
    with inject(model, memory):
        with_memory = logits(model, ids)
        with inject(model, None):
            assert torch.equal(logits(model, ids), bare)
            with inject(model, memory):
                assert torch.equal(logits(model, ids), with_memory)
        assert torch.equal(logits(model, ids), with_memory)
