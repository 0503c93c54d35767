"""Figures that the network's authors report, for the scripts beside this file to set theirs against."""

#: Eager FP32 peak memory in MB on an RTX 3060 as the network's authors report it (model test report, 2025-09-30), by
#: preset, size and batch.
EAGER_MB = {
    ("lightweight", "64x128x128", 1): 2278,
    ("lightweight", "96x192x192", 1): 4823,
    ("lightweight", "64x128x128", 2): 3354,
    ("standard", "64x128x128", 1): 1851,
}
