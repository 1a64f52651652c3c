"""Nothing that is loaded executes, and no password is shown."""

import ast
import logging
from pathlib import Path

import pytest

from mixtune.secrets import MaskSecrets, masked

ROOT = Path(__file__).parents[1]
SOURCES = [p for folder in ("mixtune", "analysis", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]
# What executes what it is given, or what a file says.
NEVER = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
    "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.loads", "shelve.open", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "os.system", "os.popen", "torch.jit.load", "torch.hub.load",
    "mlflow.pytorch.load_model", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip


def faults(source):
    """What a program must not call, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            if {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & {n.split(".")[0] for n in names}:
                yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        true = {k for k, v in keywords.items() if isinstance(v, ast.Constant) and v.value is True}
        loader = ast.unparse(keywords["Loader"]) if "Loader" in keywords else ""
        if (
            name in NEVER
            or (name in ("np.load", "numpy.load") and "allow_pickle" in keywords)
            or (name == "torch.load" and "weights_only" not in true)
            or (name == "yaml.load" and loader not in ("_Loader", "yaml.SafeLoader"))
            or (name.startswith("subprocess.") and "shell" in true)
        ):
            yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_loaded_can_execute(path):
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "torch.hub.load('a/b', 'c')",
    ],
)
def test_the_check_finds_what_it_looks_for(source):
    assert list(faults(source))


def test_the_yaml_loader_is_a_safe_one():
    import yaml

    from mixtune.config import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.system [true]", Loader=_Loader)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql+pymysql://me:secret@host:3306/db", "mysql+pymysql://me:***@host:3306/db"),
        ("https://me:s%40crt@host/x and http://a:b@c", "https://me:***@host/x and http://a:***@c"),
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("http://host/?token=abc'", "http://host/?token=***'"),
        ("redis://:secret@host", "redis://:***@host"),
        ("sqlite:////a/b@c/study.db", "sqlite:////a/b@c/study.db"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("12x57: 29% @ 3", "12x57: 29% @ 3"),
    ],
)
def test_passwords_of_addresses_are_hidden_and_nothing_else(text, shown):
    assert masked(text) == shown


def test_what_is_logged_is_masked_with_its_arguments_and_its_traceback():
    handler, said = logging.Handler(), []
    handler.addFilter(MaskSecrets())
    handler.emit = lambda record: said.append(logging.Formatter("%(message)s").format(record))
    log = logging.getLogger("a test of secrets")
    log.addHandler(handler)
    try:
        raise ConnectionError("no answer from http://me:secret@host")
    except ConnectionError:
        log.exception("cannot reach %s", "http://me:secret@host")
    log.removeHandler(handler)
    assert ":secret@" not in said[0]
    assert said[0].count("http://me:***@host") >= 2
