"""Fine-tuning on k corrected regions of 256 x 256 pixels: before, after, time and forgetting.

Corrections are true labels of k training images of a set; the scores are of the set's validation
images, which nothing was chosen on. Sets:

- `histo_monuseg`: masks of nuclei teach the instance model `nuclei`; foreground Dice;
- `blood_wbc` and `em_isbi2012`: other classes, so a new head on the old body; mean Dice. There is
  no score before, and nothing that can be forgotten: the new model answers another question;
- `dsb2018:MODALITY`: a modality that the model trained for this benchmark has never seen
  (`--trained FOLDER`, made by `--train-without`); F1 at IoU 0.5.

Forgetting is the change of F1 at IoU 0.5 on validation images of dsb2018, `--forgetting` of them
(all modalities; without the one that is learnt).

Every run is added to `runs/rows.jsonl` and to the result when it ends, and is not repeated when
the script is started again with the same folder. The result lists what was not run.

    python benchmarks/finetune.py DATA runs --quick
    python benchmarks/finetune.py DATA runs --train-without histology_purple
    python benchmarks/finetune.py DATA runs --trained runs/without-histology_purple/ttt/model \\
        --plain runs/without-histology_purple/identity/model
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result

from tttunet.models.model import Model, load_model
from tttunet.training import defaults
from tttunet.training.checkpoint import CHECKPOINT_NAME
from tttunet.training.dataset import open_dataset
from tttunet.training.finetune import finetune
from tttunet.training.heldout_scores import Tally, tally
from tttunet.training.replay import make_replay
from tttunet.training.run import train
from tttunet.training.samples import Sample, read_split, to_cases
from tttunet.training.sparse import objects_from_mask

REGION = 256
#: Name of the data set, and the task that its labels are for.
SETS = {"histo_monuseg": "instance", "blood_wbc": "semantic", "em_isbi2012": "semantic"}
NUCLEI = "nuclei_dsb2018"
#: A quarter of the recipe's operations per step.
SMALLER: dict[str, Any] = {
    "network": {"features": [16, 32, 64, 112, 160]},
    "plan": {"patch_size": [192, 192]},
}
_TRIES = 8


def region(sample: Sample, rng: np.random.Generator) -> Sample:
    """The square with the most foreground of some."""
    labels = sample.labels
    places = []
    for _ in range(_TRIES):
        start = [int(rng.integers(max(n - REGION, 0) + 1)) for n in labels.shape]
        places.append(
            tuple((a, min(a + REGION, n)) for a, n in zip(start, labels.shape, strict=True))
        )
    best = max(places, key=lambda place: (labels[_slices(place)] > 0).sum())
    return replace(sample, labels=labels[_slices(best)], bounds=best)


def _slices(bounds: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(*along) for along in bounds)


def as_objects(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, labels=objects_from_mask(sample.labels)) for sample in samples]


def headline(name: str, score: Tally) -> float:
    """Foreground Dice where the truth does not tell touching objects apart."""
    return float(score.scores()[-1]) if name == "histo_monuseg" else score.headline()


class Benchmark:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.data, self.output = options.data, options.output
        val, _ = read_split(self.data / NUCLEI, "val")
        every = max(1, len(val) // options.forgetting)
        self.nuclei = val[::every]

    def sets(self) -> list[tuple[str, str, list[Sample], list[Sample], dict[int, str]]]:
        """Name, task, images to correct, images to test on, and classes."""
        found = []
        for name in self.options.sets:
            if name.startswith("dsb2018:"):
                modality = name.partition(":")[2]
                train_, test = (
                    [s for s in read_split(self.data / NUCLEI, split)[0] if s.modality == modality]
                    for split in ("train", "val")
                )
                found.append((name, "instance", train_, test, {1: "nucleus"}))
                continue
            data = open_dataset(self.data / name)
            train_, test = (read_split(self.data / name, split)[0] for split in ("train", "val"))
            if SETS[name] == "instance":
                test = as_objects(test)
            found.append((name, SETS[name], train_, test, data.classes))
        return found

    @property
    def _record(self) -> Path:
        return self.output / "rows.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """All runs that ended."""
        if not self._record.is_file():
            return []
        return [json.loads(line) for line in self._record.read_text().splitlines()]

    def save(self) -> None:
        """Write the result as far as it goes."""
        rows = self.rows()
        result = {
            "threads": torch.get_num_threads(),
            "seconds_are": "wall time; where `load` exceeds the number of cores, other programs "
            "had a part of them",
            "summary": summarise(rows),
            "not_run": not_run(rows, self.options),
            "runs": rows,
        }
        write_result("finetune_quick" if self.options.quick else self.options.record, result)

    def run(self, start: str, arm: str) -> None:
        model = load_model(start)
        done = {_key(row) for row in self.rows()}
        wanted = [(k, seed) for k in self.options.k for seed in self.options.seeds]
        for name, task, images, test, classes in self.sets():
            left = [pair for pair in wanted if (arm, name, *pair) not in done]
            if not left:
                continue
            keeps_task = model.config.task == task
            modality = name.partition(":")[2]
            earlier = [s for s in self.nuclei if s.modality != modality]
            old = to_cases(earlier, model.config) if keeps_task else []
            cases = to_cases(test[: self.options.test], model.config) if keeps_task else []
            images_of = {
                "test_images": len(test[: self.options.test]),
                "known_images": len(old),
            }
            described = {"arm": arm, "set": name, **images_of}
            same = [row for row in self.rows() if described.items() <= row.items()]
            if same:
                known, before = same[0]["known_before"], same[0]["before"]
            else:
                known = tally(model, old).headline() if old else None
                before = headline(name, tally(model, cases)) if cases else None
            for k, seed in left:
                row = self._one(start, name, task, images, test, classes, k, seed)
                tuned: Model = row.pop("model")
                cases = to_cases(test[: self.options.test], tuned.config)
                row |= {
                    "arm": arm,
                    **images_of,
                    "before": before,
                    "after": headline(name, tally(tuned, cases)),
                    "known_before": known,
                    "known_after": tally(tuned, old).headline() if old else None,
                }
                print(json.dumps(row), flush=True)
                with self._record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                self.save()

    def _one(
        self,
        start: str,
        name: str,
        task: str,
        images: list[Sample],
        test: list[Sample],
        classes: dict[int, str],
        k: int,
        seed: int,
    ) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        chosen = [region(images[i], rng) for i in rng.permutation(len(images))[:k]]
        if name == "histo_monuseg":
            chosen = as_objects(chosen)
        began, computed = time.perf_counter(), time.process_time()
        result = finetune(
            start,
            chosen,
            self.output / f"{name.replace(':', '-')}-{k}-{seed}",
            task=task,  # type: ignore[arg-type]
            classes=classes,
            seed=seed,
            steps=self.options.steps,
            device=self.options.device,
            overwrite=True,
        )
        return {
            "set": name,
            "k": k,
            "seed": seed,
            "model": result.model,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - computed, 1),
            # Above the number of cores, other programs had a part of them.
            "load": round(os.getloadavg()[1], 1),
            "blend": result.settings["settings"]["blend"],
            "steps": result.model.config.card.training["steps"],
            "minutes": result.model.config.card.training["minutes"],
            "best_step": result.best_step,
            "held_out_before": result.before and result.before["score"],
            "held_out_after": result.after and result.after["score"],
        }

    def train_without(self, modality: str) -> None:
        """Train a smaller network by the recipe `nuclei` without a modality, with and without TTT.

        Both make the same number of steps, so that other programs cannot favour one.
        """
        source = json.loads((self.data / NUCLEI / "dataset.json").read_text())
        folder = self.output / f"without-{modality}"
        folder.mkdir(parents=True, exist_ok=True)
        kept = source["image_modality"]
        source["split"] = {
            split: [name for name in names if kept[name] != modality]
            for split, names in source["split"].items()
        }
        data = folder / "data"
        data.mkdir(exist_ok=True)
        for part in ("images", "labels"):
            if not (data / part).exists():
                (data / part).symlink_to((self.data / NUCLEI / part).resolve())
        (data / "dataset.json").write_text(json.dumps(source))
        for arm, network in (("ttt", {}), ("identity", {"ttt": None})):
            begun = (folder / arm / CHECKPOINT_NAME).is_file()
            train(
                data,
                folder / arm,
                recipe="nuclei",
                steps=self.options.train_steps,
                overrides={**SMALLER, "network": {**SMALLER["network"], **network}},
                cache=folder / "cache",
                device=self.options.device,
                resume=begun,
                overwrite=not begun,
            )
            model = folder / arm / "model"
            samples, origin = read_split(data, "train")
            make_replay(model, load_model(model).config, samples, origin)
            print(f"trained {model}")


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["arm"], row["set"], row["k"], row["seed"]


def not_run(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """What is missing of the whole benchmark: 3 seeds, k = 1, 3, 5, all sets and arms."""
    done = {_key(row) for row in rows}
    modality = f"dsb2018:{options.modality}"
    arms = [(options.model, name) for name in SETS] + [("ttt", modality), ("identity", modality)]
    missing = []
    for arm, name in arms:
        for k in (1, 3, 5):
            seeds = [str(seed) for seed in range(3) if (arm, name, k, seed) not in done]
            if seeds:
                missing.append(f"{arm} on {name}, k = {k}: seeds {', '.join(seeds)}")
    return missing


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per set, arm and k: each seed's scores, mean times, and whether every seed became better."""
    table = []
    for key in dict.fromkeys((row["arm"], row["set"], row["k"]) for row in rows):
        chosen = [row for row in rows if (row["arm"], row["set"], row["k"]) == key]
        before, known = chosen[0]["before"], chosen[0]["known_before"]
        line: dict[str, Any] = dict(zip(("arm", "set", "k"), key, strict=True))
        line |= {
            "seeds": [row["seed"] for row in chosen],
            "before": before,
            "after": [row["after"] for row in chosen],
            "every_seed_better": None
            if before is None
            else all(row["after"] > before for row in chosen),
            "seconds": round(float(np.mean([row["seconds"] for row in chosen])), 1),
            "cpu_seconds": round(float(np.mean([row["cpu_seconds"] for row in chosen])), 1),
            "forgetting": None
            if known is None
            else [round(row["known_after"] - known, 4) for row in chosen],
        }
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--sets", nargs="*", default=list(SETS), help="none: only --trained")
    parser.add_argument("--k", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the defaults by the data")
    parser.add_argument(
        "--minutes",
        type=float,
        default=defaults.MINUTES,
        help="limit of a fine-tuning; longer where other work runs beside it",
    )
    parser.add_argument("--test", type=int, help="at most so many images to test on")
    parser.add_argument("--forgetting", type=int, default=79, help="images of dsb2018 val")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="one seed, k = 1, few images")
    parser.add_argument("--record", default="finetune", help="name of the result")
    parser.add_argument("--train-without", metavar="MODALITY")
    parser.add_argument("--train-steps", type=int, default=2500, help="of --train-without, per arm")
    parser.add_argument("--trained", help="model that has never seen the modality")
    parser.add_argument("--plain", help="the same without TTT layers")
    parser.add_argument("--modality", default="histology_purple", help="that was left out")
    options = parser.parse_args()
    if options.quick:
        options.k, options.seeds, options.test, options.forgetting = [1], [0], 2, 8
    defaults.MINUTES = options.minutes
    benchmark = Benchmark(options)
    if options.train_without:
        benchmark.train_without(options.train_without)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    benchmark.run(options.model, options.model)
    options.sets = [f"dsb2018:{options.modality}"]
    for start, arm in ((options.trained, "ttt"), (options.plain, "identity")):
        if start:
            benchmark.run(start, arm)
    benchmark.save()
    for line in summarise(benchmark.rows()):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
