"""Rendezvous: how the processes of one run find each other, under torchrun or wherever an address can be passed on."""

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

from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup, convert_peer_errors

# For the slowest process; one that dies is noticed at once, by whoever started it.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface (netdevice(7))


def open_store(host: str) -> tuple[Any, int]:
    """Return a store at which processes meet, and its port.

    It listens on ``host`` alone, where torch by itself would listen on every interface: the store asks for no token.
    """
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=COLLECTIVE_TIMEOUT,
            master_listen_fd=server.detach(),
        )
    return store, port


def join_group(host: str, port: int, group: ProcessGroup, address: str) -> ProcessGroup:
    """Return ``group`` once all its processes have joined at a store opened on ``host``.

    address: of this machine, by which the others reach it. Raises PeerLostError when they do not come.
    """
    with convert_peer_errors():
        store = dist.TCPStore(host, port, is_master=False, timeout=COLLECTIVE_TIMEOUT)  # type: ignore[attr-defined]
    _initialise(address, store=store, rank=group.rank, world_size=group.world_size)
    return group


@contextmanager
def torchrun_group() -> Iterator[ProcessGroup]:
    """Yield the group of the processes that torchrun started, of which this is one, or that of a single process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    _initialise("127.0.0.1" if local_world_size == world_size else None)
    try:
        yield ProcessGroup(dist.get_rank(), world_size, local_world_size, local_rank == 0)
    finally:
        dist.destroy_process_group()


def _initialise(address: str | None, **options: Any) -> None:
    """Start torch's process group, with gloo on the interface that has this address; else gloo goes by the host name,
    which may stand for an address that other machines cannot reach.
    """
    interface = interface_of(address) if address else None
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if interface == "lo":  # elsewhere NCCL chooses the fastest one itself
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with convert_peer_errors():
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **options)


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has this IPv4 address, if one has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None
