"""Entities that are alike: nodes, their sparse neighbours, and the refresh of both."""

from lightning_modules.entity_graph.entity_graph import EntityGraph, GraphMethod
from lightning_modules.entity_graph.neighbours import Neighbours

__all__ = ["EntityGraph", "GraphMethod", "Neighbours"]
