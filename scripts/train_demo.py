"""Train the reference network `demo` on synthetic CT and write it as safetensors.

    python scripts/train_demo.py -o lhanet_export/model/demo.safetensors --log docs/measurements/demo-training.json

A narrow LHA-Net (preset standard) learns the 15 organs of AMOS22 from phantoms (`lhanet_export/volume/`), with the
network's own training outputs: the final head and the four deep-supervision heads, each with cross-entropy and
Dice. A step sees two windows, which are not a scan. So Dice is counted over the last windows together, as it is
judged later: an organ that is named where it is not costs, too. And for the last part of the training the batch
norms are fixed to statistics averaged over many windows: the network is trained as it will be used.
The same seed on the same machine and number of threads gives the same file.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from _machine import machine
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from lhanet_export import LHANet
from lhanet_export.conventions import AMOS_LABELS, Preprocessing
from lhanet_export.files import staged, write_json
from lhanet_export.shapes import Shape
from lhanet_export.verify.volumes import phantoms

CLASSES = len(AMOS_LABELS)


@dataclass(frozen=True)
class HeadLoss:
    """What a head counts for, its cross-entropy against its Dice, and whether every voxel is looked at."""

    weight: float
    cross_entropy: float = 1.0
    #: Where a head's grid is far coarser than the voxels, every second voxel along each axis is enough.
    every_voxel: bool = False


#: The final head and the deep-supervision heads, fine to coarse. On the final head's grid a small organ fills a
#: fraction of a cell: cross-entropy would have it never named, Dice alone starts slowly, so a little is kept.
HEAD_LOSSES = (
    HeadLoss(3.0, cross_entropy=0.03),
    HeadLoss(0.6, every_voxel=True),
    HeadLoss(0.1),
    HeadLoss(0.05),
    HeadLoss(0.05),
)
#: What earlier steps count for in Dice: each step 5 % less, so that about 40 windows are judged together.
FADING = 0.95
#: Numbers of these options in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that decides about the result, besides machine and versions."""

    preset: str = "standard"
    width: int = 8
    patch: Shape = (48, 96, 96)
    phantoms: int = 80
    steps: int = 8500
    #: Two windows a step: for a single one PyTorch takes slower convolutions on CPUs.
    batch: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    #: The share of the steps after which batch norms are fixed, and the windows that their statistics come from.
    fixed_norms_from: float = 0.6
    norm_windows: int = 100
    #: The share of windows whose middle is a voxel of a random organ; the others lie anywhere.
    on_organs: float = 0.8
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Scan:
    """A phantom as the network sees it: (D,H,W) float16 and its labels uint8, and where each organ's voxels are."""

    image: np.ndarray
    labels: np.ndarray
    places: dict[int, np.ndarray]


def scan_of(seed: int, how: Preprocessing) -> Scan:
    """The phantom of a seed as it is preprocessed for inference."""
    prepared = next(phantoms(seed, how))
    assert prepared.labels is not None
    image, labels = prepared.image.astype(np.float16), prepared.labels
    generator = np.random.default_rng([seed, 31])
    places = {}
    for label in range(1, CLASSES):
        found = np.flatnonzero(labels == label)
        if found.size:
            chosen = generator.choice(found, min(found.size, 500), replace=False)
            places[label] = np.stack(np.unravel_index(chosen, labels.shape), 1)
    return Scan(image, labels, places)


def windows(scans: list[Scan], config: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training windows: images (N,1,D,H,W) float32 and their labels (N,D,H,W) int64."""
    generator = np.random.default_rng([config.seed, 32])
    while True:
        pairs = [_window(scans, config, generator) for _ in range(config.batch)]
        images, labels = (torch.stack(kind) for kind in zip(*pairs, strict=True))
        yield images[:, None], labels


def _window(scans: list[Scan], config: Training, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    patch = np.array(config.patch)
    scan = scans[generator.integers(len(scans))]
    room = np.array(scan.labels.shape) - patch
    if generator.random() < config.on_organs:
        organ = list(scan.places)[generator.integers(len(scan.places))]
        middle = scan.places[organ][generator.integers(len(scan.places[organ]))]
        middle = middle + generator.integers(-patch // 4, patch // 4 + 1)
        first = np.clip(middle - patch // 2, 0, room)
    else:
        first = generator.integers(0, room + 1)
    where = tuple(slice(start, start + side) for start, side in zip(first, patch, strict=True))
    image = torch.from_numpy(scan.image[where].astype(np.float32))
    # Scanners and contrast differ more than the phantoms do.
    image = image * generator.uniform(0.95, 1.05) + generator.uniform(-0.05, 0.05)
    return image.float(), torch.from_numpy(scan.labels[where].astype(np.int64))


class RunningLoss:
    """The loss of one head: weighted cross-entropy plus 1 - soft Dice (Milletari et al. 2016), mean over organs.

    Overlap and size of each organ are sums over the windows so far, the older the less. Gradients flow through the
    windows of the step only; they are scaled as if every window of the sums had its share.
    """

    def __init__(self, head: HeadLoss) -> None:
        self.head = head
        self.overlap, self.size, self.steps = torch.zeros(CLASSES), torch.zeros(CLASSES), 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (N,K,D,H,W) for labels (N,D,H,W)."""
        every = slice(None, None, 1 if self.head.every_voxel else 2)
        log_shares = F.log_softmax(logits[..., every, every, every], 1)
        labels = labels[..., every, every, every]
        own = log_shares.gather(1, labels[:, None]).flatten()
        flat = labels.flatten()
        overlap = FADING * self.overlap + torch.zeros(CLASSES).index_add(0, flat, own.exp())
        size = FADING * self.size + log_shares.exp().sum((0, 2, 3, 4)) + torch.bincount(flat, minlength=CLASSES)
        self.overlap, self.size, self.steps = overlap.detach(), size.detach(), FADING * self.steps + 1
        missed = 1 - (2 * overlap / size)[1:].mean()
        return missed.detach() + self.steps * (missed - missed.detach()) - self.head.cross_entropy * own.mean()


def fix_norms(network: nn.Module, stream: Iterator[tuple[Tensor, Tensor]], count: int) -> None:
    """Give every batch norm the average statistics of `count` windows and stop it from following single ones."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for _ in range(count):
            network(next(stream)[0])
    for norm in norms:
        norm.eval()


def train(config: Training, how: Preprocessing) -> tuple[LHANet, list[dict]]:
    """The trained network and its record: the losses of the heads every 50 steps."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    scans = [scan_of(seed, how) for seed in track(range(config.phantoms), "phantoms")]
    stream = windows(scans, config)
    network = LHANet.from_preset(config.preset, num_classes=CLASSES, base_channels=config.width)
    network.to(memory_format=torch.channels_last_3d)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.1, cycle_momentum=False
    )
    record: list[dict] = []
    recent = []
    heads = [RunningLoss(head) for head in HEAD_LOSSES]
    for step in track(range(config.steps), "training"):
        if step == int(config.fixed_norms_from * config.steps):
            fix_norms(network, stream, config.norm_windows)
        image, labels = next(stream)
        outputs = network(image)
        logits = [outputs["final_prediction"], *outputs["deep_supervision_outputs"]]
        found = [head(one, labels) for head, one in zip(heads, logits, strict=True)]
        loss = sum(one.weight * value for one, value in zip(HEAD_LOSSES, found, strict=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append([one.item() for one in found])
        if len(recent) == 50:
            record.append({"step": step + 1, "losses": [round(value, 4) for value in np.mean(recent, 0).tolist()]})
            recent = []
            if len(record) % 10 == 0:
                print(f"step {step + 1}: losses of the heads {record[-1]['losses']}")
    return network.eval(), record


def save(network: LHANet, target: Path) -> None:
    """The weights in FP16, which halves the file; the network that the toolkit then reads has exactly these."""
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    with staged(target) as (path,):
        save_file(state, path)


def keep_memory() -> None:
    """Let malloc keep what is freed: mapping and zeroing every large tensor anew takes a third of a step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)


@click.command(help=__doc__)
@click.option("-o", "target", type=click.Path(path_type=Path), required=True, help="The safetensors file.")
@click.option("--log", type=click.Path(path_type=Path), required=True, help="Losses, settings and machine, as JSON.")
@click.option("--steps", default=Training.steps, show_default=True)
@click.option("--phantoms", default=Training.phantoms, show_default=True)
def main(target: Path, log: Path, steps: int, phantoms: int) -> None:
    keep_memory()
    config = Training(steps=steps, phantoms=phantoms)
    start = time.perf_counter()
    network, record = train(config, Preprocessing())
    save(network, target)
    facts = {
        "date": date.today().isoformat(),
        "machine": machine("torch", "numpy"),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time()),
        "bytes": target.stat().st_size,
        "training": asdict(config),
        "head_losses": [asdict(head) for head in HEAD_LOSSES],
        "losses": record,
    }
    write_json(log, facts)
    print(f"{target}: {facts['bytes'] / 1e6:.1f} MB after {facts['seconds'] / 60:.0f} min")


if __name__ == "__main__":
    main()
