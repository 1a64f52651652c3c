"""A regime in other people's training loops: torch, Lightning, timm."""
