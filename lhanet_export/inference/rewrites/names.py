"""The rewrites by name, as data: for commands, which offer them without loading torch."""

#: Name and promise, in the order in which they are applied.
REWRITES = {
    "split-stem": "the full-resolution map is made and used in two halves",
    "stacked-fusions": "a level takes its five branches in one by one, the largest first",
    "short-convolutions": "large convolutions take a third of their multiply-adds along depth",
    "slabs": "the largest of those makes its products in parts by depth",
}

#: What a graph is for. An engine has little memory; a CPU has enough, and less arithmetic.
PURPOSES = ("engine", "cpu")
