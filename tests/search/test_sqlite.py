import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import create_engine

from mixtune.search.sqlite import hasten_commits, leave_write_ahead_log, sqlite_path, use_write_ahead_log


def run(path, *statements):
    """The last statement's rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        return [file.execute(s).fetchall() for s in statements][-1]


def mode(path):
    return run(path, "PRAGMA journal_mode")[0][0]


def test_a_file_gets_a_log_and_is_one_plain_file_again(tmp_path):
    url = f"sqlite:///{tmp_path}/a b.db"
    path = tmp_path / "a b.db"
    run(path, "CREATE TABLE t(x)")
    use_write_ahead_log(url)
    assert mode(path) == "wal"
    run(path, "INSERT INTO t VALUES (7)")
    leave_write_ahead_log(url)
    assert mode(path) == "delete"
    assert [p.name for p in tmp_path.iterdir()] == ["a b.db"]
    assert run(path, "SELECT x FROM t") == [(7,)]


def test_a_locked_file_stays_as_it_is(tmp_path):
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("CREATE TABLE t(x)")
        file.execute("BEGIN EXCLUSIVE")
        use_write_ahead_log(f"sqlite:///{path}")
        file.execute("ROLLBACK")
    assert mode(path) == "delete"


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000", "postgresql://host/db", "sqlite:///:memory:", "sqlite://"])
def test_other_stores_are_left_alone(url, tmp_path):
    assert sqlite_path(url) is None
    use_write_ahead_log(url)
    leave_write_ahead_log(url)


def test_a_file_that_is_not_there_is_not_made(tmp_path):
    use_write_ahead_log(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


def test_a_hastened_file_is_written_without_waiting_for_the_disk(tmp_path):
    path = tmp_path / "x.db"
    run(path, "CREATE TABLE t(x)")
    use_write_ahead_log(f"sqlite:///{path}")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as before:
        assert before.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    hasten_commits(engine)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
        connection.exec_driver_sql("INSERT INTO t VALUES (7)")
    assert run(path, "SELECT x FROM t") == [(7,)]
    engine.dispose()
