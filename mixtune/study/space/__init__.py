"""Space: what is searched: a YAML file becomes a space, a point of it a regime."""

from mixtune.study.space.space import NEGLIGIBLE, Named, Resources, Space

__all__ = ["NEGLIGIBLE", "Named", "Resources", "Space"]
