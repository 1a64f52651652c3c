import torch

from mixtune.runtime.memory import PeakMemory, available_memory, count_oom_kills

MIB, GIB = 2**20, 2**30
CPU = torch.device("cpu")


def test_a_peak_is_seen_after_it_is_over_and_forgotten_by_the_next():
    before = PeakMemory(CPU)
    block = torch.ones(256 * MIB, dtype=torch.uint8)
    with_block = before.bytes()
    del block
    assert before.bytes() >= with_block - MIB
    assert PeakMemory(CPU).bytes() < with_block - 200 * MIB


def test_available_memory_is_the_machines_or_the_containers_if_that_is_less(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 64 kB\nMemAvailable:  8388608 kB\n")
    write("proc/self/status", "VmHWM:\t 99 kB\nVmRSS:\t  1048576 kB\n")
    assert available_memory(CPU, tmp_path) == 9 * GIB
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", f"{GIB}\n")
    assert available_memory(CPU, tmp_path) == 9 * GIB
    write("sys/fs/cgroup/memory.max", f"{4 * GIB}\n")
    assert available_memory(CPU, tmp_path) == 4 * GIB


def test_the_kernels_count_of_count_oom_kills(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 7\noom_kill_other 9\n")
    assert count_oom_kills(tmp_path / "vmstat") == 7
    assert count_oom_kills(tmp_path / "none") == 0
    assert count_oom_kills() >= 0
