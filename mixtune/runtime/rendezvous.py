"""Meeting: how the processes of one run find each other, under torchrun or wherever an address can be passed on."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mixtune.regime import Shard
from mixtune.runtime.process_group import ALONE, Ranks, exchange

PATIENCE = timedelta(minutes=30)  # for the slowest rank; one that dies is noticed at once, by whoever started it


def meet(host: str, port: int, shard: Shard, address: str, local: int = 1, first_here: bool = True) -> Ranks:
    """Join the other ranks at a ``listen``ing host. ``address``: this machine's, by which the others reach it; local
    and first_here as in ``Ranks``. Raises PeerLostError when they do not come.
    """
    with exchange():
        store = dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
    _connect(address, store=store, rank=shard.rank, world_size=shard.world)
    return Ranks(shard, local, first_here)


def _connect(address: str | None, **how: Any) -> None:
    interface = interface_of(address) if address else None
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if interface == "lo":  # elsewhere NCCL chooses the fastest one itself
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    with exchange():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE, **how)


@contextmanager
def from_environment() -> Iterator[Ranks]:
    """The ranks that torchrun started, of which this process is one; a process on its own is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    here, local = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(here % torch.cuda.device_count())
    _connect("127.0.0.1" if local == world else None)
    try:
        yield Ranks(Shard(dist.get_rank(), world), local, here == 0)
    finally:
        dist.destroy_process_group()


def listen(host: str) -> tuple[Any, int]:
    """A store that listens on ``host`` alone, for the ranks to meet, and its port."""
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=True, wait_for_workers=False, timeout=PATIENCE, master_listen_fd=server.detach()
        )
    return store, port


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this IPv4 address, if one has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
