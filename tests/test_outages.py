"""The study's storages locked by someone else for longer than anyone waits, in the middle of a real search."""

import sqlite3
import time
import uuid

import pytest

from tests.accounts import assert_exact, assert_gone, read_until, start


@pytest.mark.slow
def test_a_search_outlasts_storages_that_are_away(tmp_path, space_file, tiny):
    mark, folder = uuid.uuid4().hex, tmp_path / "study"
    database = f"sqlite:///{folder}/study.db"
    space = space_file(tiny | {"trials": 6, "budget": {"epochs": 2}})
    process, said = start(folder, space, "--storage", database, mark=mark), []
    assert read_until(process, " start ", said, 3), "".join(said)
    locks = [sqlite3.connect(folder / name, isolation_level=None, timeout=30) for name in ("study.db", "mlflow.db")]
    for lock in locks:
        lock.execute("BEGIN EXCLUSIVE")
    time.sleep(60)
    for lock in locks:
        lock.execute("ROLLBACK")
        lock.close()
    said.append(process.communicate(timeout=200)[0])
    text = "".join(said)
    assert process.returncode == 0, text
    assert "the study's storage does not answer (database is locked)" in text
    assert "the study's storage answers again" in text
    assert "Traceback" not in text
    assert_exact(folder, 6, storage=database)
    assert_gone(mark)
