"""Label maps after the network: of each organ the largest piece."""

import numpy as np


def keep_largest(labels: np.ndarray) -> None:
    """Of each organ in (Z,Y,X) leave the largest piece, in place; of two of one size the one that begins first.

    Voxels that touch at a face, an edge or a corner are one piece. Pieces are found of runs, voxels of one label in a
    row along X: few enough for arrays of them.
    """
    _, height, width = labels.shape
    changes = np.ones(labels.shape, bool)
    changes[:, :, 1:] = labels[:, :, 1:] != labels[:, :, :-1]
    begin = np.flatnonzero(changes)
    organ, end = labels.ravel()[begin], np.append(begin[1:], labels.size)
    begin, end, organ = begin[organ > 0], end[organ > 0], organ[organ > 0]
    # A row is numbered so that there is one without voxels between the last of a slice and the first of the next one;
    # two numbers, far enough apart from row to row, then say where a run begins and ends.
    row = begin // width + begin // (width * height)
    first, last = (row * (width + 2) + at % width for at in (begin, end - 1))
    piece = np.arange(len(begin))
    touching = []
    for away in (1, height, height + 1, height + 2):  # the next row, and three of the next slice
        low = np.searchsorted(last, first + away * (width + 2) - 1)
        count = np.searchsorted(first, last + away * (width + 2) + 1, side="right") - low
        one = np.repeat(piece, count)
        other = np.arange(len(one)) - np.repeat(np.cumsum(count) - count - low, count)
        touching.append(np.stack([one, other])[:, organ[one] == organ[other]])
    one, other = np.concatenate(touching, axis=1)
    # Runs that touch take the lowest number of both, until none changes: that of the first run of the piece.
    while (piece[one] != piece[other]).any():
        lowest = np.minimum(piece[one], piece[other])
        np.minimum.at(piece, piece[one], lowest)
        np.minimum.at(piece, piece[other], lowest)
        while (piece != piece[piece]).any():
            piece = piece[piece]
    sizes = np.bincount(piece, end - begin)
    for name in np.unique(organ):
        pieces = np.unique(piece[organ == name])
        for run in np.flatnonzero((organ == name) & (piece != pieces[sizes[pieces].argmax()])):
            labels.ravel()[begin[run] : end[run]] = 0
