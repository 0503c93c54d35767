"""The rewrites by name, as data: for commands, which offer them without loading torch."""

#: Name and promise, in the order in which they are applied.
REWRITES = {
    "split-stem": "the backbone's largest map is made and used in parts",
    "stacked-fusions": "a level takes its five branches in one by one, the largest first",
    "short-convolutions": "large convolutions take a third of their multiply-adds along depth",
    "slabs": "the largest of those makes its products in parts by depth",
    "resize-order": "branches resize their axes in an order that lets a level's map go sooner",
    "read-logits": "the last resize reads two planes for each of the logits' instead of multiplying by a matrix",
}

#: What a graph is for. An engine has little memory; a CPU has enough, and less arithmetic.
PURPOSES = ("engine", "cpu")
