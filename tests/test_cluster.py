"""The deployment files are what Ray, KubeRay and this program accept."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mixtune.config import load_config
from mixtune.search.space import Space
from tests.commands import module_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/cluster.md").read_text()
JOB = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
NODES = yaml.safe_load((ROOT / "cluster/ray-cluster.yaml").read_text())
RAY = re.search(r"^ray==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
# Of KubeRay's ray.io/v1, what a RayJob of ours may say (its whole schema is a megabyte).
KNOWN = {
    "spec": "activeDeadlineSeconds backoffLimit entrypoint rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes "
    "submissionMode ttlSecondsAfterFinished",
    "rayClusterSpec": "authOptions enableInTreeAutoscaling headGroupSpec rayVersion workerGroupSpecs",
    "group": "groupName maxReplicas minReplicas rayStartParams replicas template",
    "container": "env image name ports resources volumeMounts",
}


def groups():
    cluster = JOB["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers():
    return [c for g in groups() for c in g["template"]["spec"]["containers"]]


def flags(line):
    """The module and its parsed flags, of a command line with ``python -m mixtune.X`` in it."""
    words = shlex.split(line, comments=True)
    at = words.index("-m")
    module = module_of(words[at + 1])
    return words[at + 1], module.parser().parse_args(words[at + 2 :])


def test_the_ray_job_has_fields_that_kuberay_knows():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    cluster = JOB["spec"]["rayClusterSpec"]
    assert set(JOB["spec"]) <= set(KNOWN["spec"].split())
    assert set(cluster) <= set(KNOWN["rayClusterSpec"].split())
    assert all(set(g) <= set(KNOWN["group"].split()) for g in groups())
    assert all(set(c) <= set(KNOWN["container"].split()) for c in containers())
    for group in groups():
        pod = group["template"]["spec"]
        volumes = {v["name"] for v in pod["volumes"]}
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} <= volumes
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())


def test_the_ray_job_runs_our_search_with_flags_that_parse():
    shell, option, line = shlex.split(JOB["spec"]["entrypoint"])  # tests/test_jobs.py submits it
    assert (shell, option) == ("sh", "-c")
    name, args = flags(line)
    assert name == "mixtune.search"
    assert args.address == "auto"
    set_here = {e["name"] for c in containers()[:1] for e in c["env"]}
    assert {args.storage.strip("$"), args.tracking_uri.strip("$")} == set_here
    mounts = [{m["mountPath"] for m in c["volumeMounts"]} for c in containers()]
    assert all("/shared" in m for m in mounts)
    assert args.out.startswith("/shared/")
    (copied,) = re.findall(r"^WORKDIR (.*)$", (ROOT / "cluster/Dockerfile").read_text(), re.MULTILINE)
    space = load_config(ROOT / Path(args.space).relative_to(copied), Space, args.assignments)
    asked, (worker,) = space.resources, containers()[1:]
    there = worker["resources"]["limits"]
    assert asked.workers > 1
    assert asked.workers * asked.cpus <= int(there["cpu"])
    assert asked.workers * asked.gpus <= int(there["nvidia.com/gpu"])


def test_every_file_names_the_ray_that_is_tested():
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    assert f"FROM rayproject/ray:{RAY}-py311" in (ROOT / "cluster/Dockerfile").read_text()
    assert set(re.findall(r"ray\[default\]==([\d.]+\d)", PAGE)) == {RAY}


def test_the_image_gets_the_program_and_nothing_that_grows():
    left_out = {x for x in (ROOT / ".dockerignore").read_text().splitlines() if not x.startswith("#")}
    ignored = {x.rstrip("/") for x in (ROOT / ".gitignore").read_text().splitlines()}
    assert {".git", *(x for x in ignored if not fnmatch(x, ".*_cache") and "/" not in x)} - {"__pycache__"} <= left_out
    assert {"**/__pycache__", ".*_cache"} <= left_out
    assert not {"mixtune", "analysis", "search_spaces", "requirements.txt"} & left_out


def test_images_are_one_image():
    images = {c["image"] for c in containers()}
    assert len(images) == 1
    assert images.pop() in PAGE


def test_the_cluster_launcher_accepts_our_machines():
    validate_config(prepare_config(NODES))
    starts = [*NODES["head_start_ray_commands"], *NODES["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in c for c in starts if " start " in c)
    assert NODES["min_workers"] == NODES["max_workers"] == len(NODES["provider"]["worker_ips"])


@pytest.mark.parametrize("words", ["--head --port=6379 --dashboard-host=127.0.0.1", "--address=$RAY_HEAD_IP:6379"])
def test_ray_start_knows_the_options(words):
    from ray.scripts.scripts import start

    commands = [*NODES["head_start_ray_commands"], *NODES["worker_start_ray_commands"]]
    (line,) = (c for c in commands if words in c)
    options = shlex.split(line[line.index(" start ") + 7 :])
    start.make_context("start", [o for o in options if o], resilient_parsing=False)


COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "-m mixtune." in line])
def test_the_pages_commands_have_flags_that_parse(line):
    name, _ = flags(line)
    assert name in {"mixtune.search", "mixtune.train"}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\((?:\.\./)?(cluster/[\w.-]+)\)|(cluster/[\w.-]+)", PAGE))))
def test_every_file_that_the_page_names_exists(path):
    assert (ROOT / (path[0] or path[1])).exists()


def test_its_yaml_is_a_search_space_section(tiny):
    from mixtune.config import parse

    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert parse(tiny | yaml.safe_load(block), Space, "docs/cluster.md").resources.workers == 8
