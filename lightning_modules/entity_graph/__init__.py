"""Which entities are alike: nodes, their nearest neighbours, and the graph learned from both."""
