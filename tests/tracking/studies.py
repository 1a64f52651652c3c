"""Studies whose trials are made up, in Optuna's storage and in folders, and what MLflow holds of them."""

from dataclasses import asdict, replace

from mlflow import MlflowClient

from mixtune.config import to_plain, to_yaml
from mixtune.evaluation.curve import write_csv
from mixtune.execution.trial_config import make_candidate
from mixtune.regime.files import save_regime
from mixtune.search.callbacks import Callbacks
from mixtune.search.final import Repeat
from mixtune.search.optuna_study import OptunaStudy
from mixtune.study.repeats import Repeats
from tests import curves


def curve_of(score):
    return curves.curve_of(curves.point(8, 0.1, score / 3, 0.9, 1.0), curves.point(12, 0.2, score))


def report_of(number, progress, score, **more):
    fixed = {"loss": 1.5, "lr": 0.1, "views_per_second": 100.0, "seconds": 2.0, "last": False}
    return fixed | {"number": number, "progress": progress, "curve": curve_of(score).rows()} | more


class MadeStudy:
    """A study in ``folder`` that runs trials, as the coordinator does: the study first, then the callbacks."""

    def __init__(self, folder, space, *callbacks):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space = folder, space
        self.trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
        self.callbacks = Callbacks(callbacks)

    def begin(self):
        """A trial that runs: (Optuna's, candidate)."""
        trial, params = self.trials.ask()
        candidate = make_candidate(self.space, trial.number, params, trial.user_attrs, self.folder)
        candidate.folder.mkdir(parents=True, exist_ok=True)
        save_regime(candidate.folder / "regime.yaml", candidate.regime, to_plain(self.space.training(1)))
        self.callbacks.call("started", candidate)
        return trial, candidate

    def report(self, trial, candidate, number, score, reports=2):
        self.trials.report(trial, number, score, number == reports)
        # A little later than it was due, as where steps are few.
        progress = 1.0 if number == reports else number / reports + 0.04
        self.callbacks.call("reported", candidate, report_of(number, progress, score), score)

    def end(self, trial, candidate, score, state="COMPLETE", reason=""):
        curve = curve_of(score) if score is not None else None
        if state == "COMPLETE":
            result = {"loss": 1.5, "minutes": 2 / 60, "images": {"trained": 9, "judged": 9}}
            (candidate.folder / "result.yaml").write_text(to_yaml(result))
            (candidate.folder / "weights.safetensors").write_bytes(b"weights")
            write_csv(candidate.folder / "curve.csv", curve.rows())
        self.trials.finish(trial, state, score, reason, curve)
        self.callbacks.call("ended", candidate, state, score, reason, curve)

    def run(self, *scores, state="COMPLETE", reason=""):
        """A whole trial."""
        trial, candidate = self.begin()
        for number, score in enumerate(scores, 1):
            self.report(trial, candidate, number, score)
        self.end(trial, candidate, scores[-1] if scores else None, state, reason)
        return candidate

    def repeat(self, of, seed, score, round_="final"):
        """A finished run of a round after the search."""
        outcome = next(o for o in self.trials.outcomes() if o.number == of)
        repeat = Repeat(of, seed, round_)
        url = f"journal:///{self.folder}/study.journal"
        runs = Repeats(url, replace(self.space), round_, [(outcome, repeat)])
        trial, params = runs.ask()
        noted = {"published": outcome.published, "repeat": asdict(repeat)}
        candidate = make_candidate(self.space, trial.number, params, noted, self.folder / round_)
        candidate.folder.mkdir(parents=True)
        save_regime(candidate.folder / "regime.yaml", candidate.regime)
        runs.finish(trial, "COMPLETE", score, "", curve_of(score))
        runs.close()
        self.callbacks.call("ended", candidate, "COMPLETE", score, "", curve_of(score))


def contents(uri):
    """What MLflow holds of trials and repeats, by (kind, trial, judge, seed), and how many parent runs there are."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mixtune")
    held, parents = {}, 0
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        tags = run.data.tags
        if tags["mixtune.kind"] == "study":
            parents += 1
            continue
        key = tags["mixtune.kind"], int(tags["mixtune.trial"]), tags.get("mixtune.judge"), tags["mixtune.seed"]
        assert key not in held, "a run is there twice"
        held[key] = {
            "tags": {k: v for k, v in tags.items() if not k.startswith("mlflow.")},
            "name": run.info.run_name,
            "params": dict(run.data.params),
            "metrics": {
                k: [(m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, k), key=_step)]
                for k in run.data.metrics
            },
            "files": sorted(a.path for a in client.list_artifacts(run.info.run_id)),
            "status": run.info.status,
            "data": len(run.inputs.dataset_inputs),
        }
    return held, parents


def _step(metric):
    return metric.step


def essential(held):
    """The same without what the study does not hold of the metrics on the way: all but scores, and where they were."""
    runs = {}
    for key, run in held.items():
        whole = run["tags"]["mixtune.state"] == "COMPLETE"
        lost = ("train/lr", "train/views") if whole else ("train/", "seconds")
        metrics = {k: points for k, points in run["metrics"].items() if not k.startswith(lost)}
        if key[0] == "trial":
            for k in set(metrics) - {k for k in metrics if k.startswith("curve/")}:
                points = [(step if step == 100 else 50, value) for step, value in metrics[k]]
                metrics[k] = points if k == "score" else points[-1:]
        runs[key] = run | {"metrics": metrics}
    return runs
