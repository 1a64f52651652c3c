"""Imported by the process that ranks are forked from: what it has loaded, none of them loads again."""

from tests.training.on_ranks import warm_up

warm_up()
