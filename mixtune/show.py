"""Show size regimes as tables and as one figure: python -m mixtune.show FILE...

Every table says which share of the steps and of the samples each batch shape (S x B, or S x B x D) gets. The figure
puts the regimes' timelines side by side: image size over the budget, with batch and copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixtune.cli import Parser, parse_args, relative_to_cwd, run_command
from mixtune.errors import InputError
from mixtune.regime import Budget, CostTable, Regime
from mixtune.regime.catalogue import published_run_length
from mixtune.regime.files import load_regime
from mixtune.regime.table import RunTable, to_markdown, to_text


def parser() -> Parser:
    """Return the parser of the command's flags."""
    p = Parser("mixtune.show", __doc__.split("\n")[0])
    p.add_argument("files", nargs="+", metavar="FILE", help="regime files (YAML)")
    p.add_argument("--epochs", type=float, help="budget in epochs of the base shape (default: the papers', 90 or 200)")
    p.add_argument("--samples", type=int, help="training images (default: ImageNet's, or CIFAR's for bases up to 64)")
    p.add_argument("--spend", choices=("compute", "epochs"), default="compute", help="what every regime gets equally")
    p.add_argument("--cost", metavar="TABLE", help="count compute by this table of measured step costs, not by pixels")
    p.add_argument("--total", type=float, help="budget in the units of --cost (GMACs or seconds) instead of --epochs")
    p.add_argument("--markdown", action="store_true", help="print one Markdown row per regime and draw nothing")
    p.add_argument(
        "--figure", default="timeline", metavar="STEM", help="draw STEM.png and STEM.svg (default: timeline)"
    )
    p.add_argument("--no-figure", action="store_true", help="draw nothing")
    return p


def tabulate(
    path: str, epochs: float | None, samples: int | None, spend: str, cost: CostTable | None, total: float | None
) -> RunTable:
    """Return the table of one regime file. Raise InputError naming the file."""
    regime, _ = load_regime(path)
    n, usual = published_run_length(regime.base)
    n = n if samples is None else samples
    try:
        return RunTable.of(regime, _budget(regime, usual if epochs is None else epochs, n, spend, cost, total), n, cost)
    except ValueError as err:
        raise InputError(f"{path}: {err}") from None


def _budget(regime: Regime, epochs: float, n: int, spend: str, cost: CostTable | None, total: float | None) -> Budget:
    if spend == "epochs":
        return Budget(epochs, "epochs")
    if cost is None:
        return Budget(epochs)
    return Budget(epochs, cost=cost.unit) if total is None else Budget.of_total(total, cost.unit, regime.base, n, cost)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    args = parse_args(parser(), argv)
    cost = CostTable.load(args.cost) if args.cost else None
    if args.total is not None and (cost is None or args.epochs is not None):
        raise InputError("--total needs --cost, whose units it is in, and stands instead of --epochs")
    if args.samples is not None and args.samples < 1:
        raise InputError(f"--samples must be at least 1, not {args.samples}")
    tables = [tabulate(f, args.epochs, args.samples, args.spend, cost, args.total) for f in args.files]
    if args.markdown:
        print(to_markdown(tables), end="")
        return 0
    print("\n\n".join(to_text(t) for t in tables))
    if not args.no_figure:
        from analysis.timeline import draw_timelines  # needs matplotlib, which a machine that only trains may lack

        captions = [f"{t.steps:,} steps · {t.epochs:.0f} epochs" for t in tables]
        paths = draw_timelines([t.regime for t in tables], Path(args.figure), captions)
        print("\nwrote " + " and ".join(str(relative_to_cwd(path)) for path in paths))
    return 0


if __name__ == "__main__":
    run_command(main)
