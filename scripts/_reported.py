"""Figures that the network's authors report, for the scripts beside this file to set theirs against.

All are of their model initialization test report of 2025-09-30: networks of 14 classes, eager FP32 on an RTX 3060.
"""

#: Parameters by preset: all of them, and those of the parts that the report names.
PARAMETERS = {
    "lightweight": {"total": 311_237_575, "backbone": 14_107_200, "pmsa": 279_965_964, "decoder": 17_147_317},
    "standard": {"total": 330_290_375, "backbone": 33_160_000, "pmsa": 279_965_964, "decoder": 17_147_317},
}
#: Their weights by preset. These MB are of 2**20 bytes: four bytes a parameter make no other number.
WEIGHTS_MB = {"lightweight": 1187, "standard": 1260}
#: Peak memory in MB by preset, size and batch; the report does not say which MB.
EAGER_MB = {
    ("lightweight", "64x128x128", 1): 2278,
    ("lightweight", "96x192x192", 1): 4823,
    ("lightweight", "64x128x128", 2): 3354,
    ("standard", "64x128x128", 1): 1851,
}
