"""Say what the reference network `demo` is worth: Dice of each organ on unseen phantoms, beside the best possible.

    python scripts/evaluate_demo.py lhanet_export/model/demo.safetensors --json docs/measurements/demo.json

The final head's logits are made at the coarsest level and resized, so its Dice has a ceiling for any network. It is
measured here: for each window, logits on that grid are fitted to the truth directly, by gradient descent on Dice
and cross-entropy, starting from the share that each class has in each cell.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from _machine import machine
from rich.progress import track
from torch import Tensor

from lhanet_export import LHANet, load_checkpoint
from lhanet_export.conventions import AMOS_LABELS
from lhanet_export.files import sha256_of, write_json
from lhanet_export.model.resize import resize_to_size
from lhanet_export.verify.inputs import PUBLIC_PATCH
from lhanet_export.verify.organs import Organs, organs_of, overlaps
from lhanet_export.verify.volumes import VERIFICATION_SEEDS, ScanCase, scan_cases

HEADS = ("final", "deep0", "deep1", "deep2", "deep3")
#: Logits are fitted with a sharpness that grows from 1: labels are what counts in the end.
FIT_STEPS, FIT_RATE, LAST_SHARPNESS = 200, 0.3, 6.0


def head_labels(network: LHANet, case: ScanCase) -> dict[str, np.ndarray]:
    """The labels (N,D,H,W) of each head for a case."""
    image = torch.from_numpy(case.image)
    size = image.shape[-3:]
    with torch.inference_mode():
        results = network(image, return_features=True)
        logits = [results["final_prediction"]]
        for head, feature in zip(network.deep_supervision_heads, results["pmsa_features"], strict=True):
            logits.append(resize_to_size(head(feature), size))
    return {name: one.argmax(1).numpy() for name, one in zip(HEADS, logits, strict=True)}


def best_labels(truth: np.ndarray, stride: int) -> np.ndarray:
    """Labels (N,D,H,W) of logits on a grid of `stride`, fitted to the truth: the ceiling of a head on that grid."""
    classes = np.unique(truth)
    # The inner classes only: a class that is not in the window would never be chosen.
    labels = torch.from_numpy(np.searchsorted(classes, truth).astype(np.int64))
    wanted = F.one_hot(labels, len(classes)).movedim(-1, 1).float()
    grid = [-(-side // stride) for side in truth.shape[1:]]
    logits = (F.adaptive_avg_pool3d(wanted, grid) + 1e-3).log().requires_grad_()
    optimizer = torch.optim.Adam([logits], FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    for step in range(FIT_STEPS):
        sharpness = 1 + (LAST_SHARPNESS - 1) * step / FIT_STEPS
        fine = sharpness * resize_to_size(logits, truth.shape[1:])
        log_shares = fine.log_softmax(1)
        loss = _dice_loss(log_shares.exp(), wanted) - 0.1 * (log_shares * wanted).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        found = resize_to_size(logits, truth.shape[1:]).argmax(1).numpy()
    return classes[found]


def _dice_loss(shares: Tensor, wanted: Tensor) -> Tensor:
    both = (shares * wanted).sum((0, 2, 3, 4))
    return 1 - (2 * both / (shares + wanted).sum((0, 2, 3, 4)))[1:].mean()


def score(cases: list[ScanCase], labels: list[np.ndarray]) -> Organs:
    """Dice of each organ to the truth over all cases."""
    found = organs_of([overlaps(case, one, one) for case, one in zip(cases, labels, strict=True)])
    assert found is not None
    return found


def facts_of(organs: Organs) -> dict[str, Any]:
    """Dice to the truth by organ name, and the mean over organs."""
    dice = {AMOS_LABELS[one.index]: round(float(one.reference_to_truth or 0), 4) for one in organs.scores}
    return {"mean": round(float(np.mean(list(dice.values()))), 4), "organs": dice}


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "target", type=click.Path(path_type=Path), required=True)
@click.option("--windows", default=45, show_default=True)
def main(checkpoint: Path, target: Path, windows: int) -> None:
    torch.set_num_threads(2)
    network = load_checkpoint(checkpoint)
    cases = scan_cases(None, PUBLIC_PATCH, windows, classes=len(AMOS_LABELS))
    stride = network.preset.strides[-1]
    by_head: dict[str, list[np.ndarray]] = {head: [] for head in HEADS}
    ceiling = []
    for case in track(cases, "windows"):
        for head, labels in head_labels(network, case).items():
            by_head[head].append(labels)
        assert case.truth is not None
        ceiling.append(best_labels(case.truth, stride))
    results = {"ceiling of the final head": facts_of(score(cases, ceiling))}
    results |= {head: facts_of(score(cases, labels)) for head, labels in by_head.items()}
    facts = {
        "date": date.today().isoformat(),
        "machine": machine("torch", "numpy"),
        "checkpoint_sha256": sha256_of(checkpoint),
        "windows": len(cases), "patch": PUBLIC_PATCH, "first_seed": VERIFICATION_SEEDS, "stride": stride,
        "final_of_ceiling": round(results["final"]["mean"] / results["ceiling of the final head"]["mean"], 4),
        "dice": results,
    }  # fmt: skip
    write_json(target, facts)
    for name, one in results.items():
        print(f"{name:28} {one['mean']:.4f}", {key: round(value, 3) for key, value in one["organs"].items()})


if __name__ == "__main__":
    main()
