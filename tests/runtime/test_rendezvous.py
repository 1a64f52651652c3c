"""Where the processes of a run meet, and who else could."""

import os
import socket

import pytest
import torch.distributed as dist

from mixtune.runtime.process_group import SINGLE_PROCESS, PeerLostError, ProcessGroup, convert_peer_errors
from mixtune.runtime.rendezvous import interface_of, join_group, open_store, torchrun_group


def test_a_process_that_torchrun_did_not_start_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun_group() as group:
        assert group is SINGLE_PROCESS
    assert not dist.is_initialized()


def test_a_store_listens_at_its_host_alone():
    """It asks for no token, so that other machines must not reach one that is meant for this one."""
    store, port = open_store("127.0.0.1")
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(OSError):  # noqa: PT011 (refused, or no such address)
        socket.create_connection(("127.0.0.2", port), 5)
    del store


@pytest.mark.skipif(not os.path.exists("/sys/class/net/lo"), reason="has no loopback interface of this name")  # noqa: PTH110
def test_an_interface_is_known_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None  # of documentation (RFC 5737): nobody's


def test_processes_that_do_not_come_are_a_lost_peer(monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr("mixtune.runtime.rendezvous.COLLECTIVE_TIMEOUT", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PeerLostError):
        join_group("127.0.0.1", port, ProcessGroup(0, 2), "127.0.0.1")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:5] Connection closed by peer"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (ValueError("gloo"), False),
    ],
)
def test_only_failures_of_communication_are_a_lost_peer(error, lost):
    with pytest.raises(PeerLostError if lost else type(error)) as raised, convert_peer_errors():
        raise error
    assert (raised.value is error) is not lost
