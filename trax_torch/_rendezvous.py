"""Where ranks that a launcher started find each other: under names that no dead one has used."""

import datetime
import os
import time
import uuid
from typing import Any

import torch.distributed as dist

_PAUSE = 0.02  # seconds between two looks for who has come


def meeting_place(rank: int, size: int, limit: datetime.timedelta) -> dict[str, Any]:
    """Returns where ranks find each other, if that must be said, for `init_process_group`.

    torchrun keeps one store over all restarts, where torch 2.13 has ranks read the addresses of the
    dead (pytorch issue 167288), on one machine or on many, and then wait for them. So each start
    gets names of its own, which ranks agree on in that store. What torchrun tells them would not do
    for that: machines count restarts each for itself.

    Args:
      rank, size: of this process, and how many there are.
      limit: how long to wait for the others.

    Raises:
      RuntimeError: of torch's kinds, if not all come in time.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    stores: Any = dist  # whose stub does not hand out its stores
    store = stores.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), size, False, limit)
    name = agreed_name(stores.PrefixStore("trax_torch", store), rank, size, limit)
    return {"store": stores.PrefixStore(name, store), "rank": rank, "world_size": size}


def agreed_name(store: Any, rank: int, size: int, limit: datetime.timedelta) -> str:
    """Returns a name that all ranks have, and none had before, whatever earlier ones left behind.

    Each rank says a word that it made up. The first one answers each word with the name, also one
    that is said in the place of a dead rank's, until every rank has said that it got the name.

    Args:
      store: keeps values by name, for all ranks.
      rank, size, limit: as for `meeting_place`.
    """
    word = uuid.uuid4().hex
    if rank:
        store.set(f"word of {rank}", word)
        store.wait([f"answer to {word}"], limit)
        name: str = store.get(f"answer to {word}").decode()
        store.set(f"{name} got by {rank}", "")
        return name
    until = time.monotonic() + limit.total_seconds()
    missing, answered = set(range(1, size)), set()
    while missing:
        for other in sorted(missing):
            if store.check([f"{word} got by {other}"]):
                missing.discard(other)
            elif store.check([f"word of {other}"]):
                said = store.get(f"word of {other}").decode()
                if said not in answered:
                    store.set(f"answer to {said}", word)
                    answered.add(said)
        if missing and time.monotonic() > until:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come within {limit}")
        time.sleep(_PAUSE)
    return word
