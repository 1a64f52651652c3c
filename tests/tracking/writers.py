"""Writers of a study to MLflow, for tests."""

from mixtune.search.optuna_study import OptunaStudy
from mixtune.tracking.mlflow_writer import MlflowWriter


def open_writer(uri, space, folder, trials=None):
    """A writer of the study in ``folder``, which is begun where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return MlflowWriter(uri, space, folder, trials or OptunaStudy(f"journal:///{folder}/study.journal", space, 4))


class Silent:
    """Writes nothing, for tests of a study that do not look into MLflow."""

    experiment = parent = ""

    def __init__(self, uri, space, folder, trials):
        pass

    def started(self, trial):
        pass

    def reported(self, trial, report, score):
        pass

    def ended(self, trial, state, score, reason, curve):
        pass

    def start_resync(self):
        pass

    def resync(self):
        return True

    def finish(self, status, files):
        return True

    def close(self):
        pass
