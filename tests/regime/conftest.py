"""Property tests draw the same examples in every run."""

from hypothesis import settings

settings.register_profile("mixtune", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("mixtune")
