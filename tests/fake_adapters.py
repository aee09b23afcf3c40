"""Adapters where a project keeps them: in the workspace, and in DVC's cache by a point's lock."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import fake_run
import pytest
import torch
from fake_project import ROOT
from safetensors.torch import save_file

from bitrank import chain, paths, records
from bitrank.composition import compose_text

CANONICAL = json.dumps({"base_model_name_or_path": None, "peft_type": "LORA",
                        "target_modules": ["a", "b"]}, indent=2, sort_keys=True) + "\n"  # fmt: skip


def make_adapter(folder: Path, config: str = CANONICAL) -> str:
    """Files as `train` leaves them; return the hash of the weights."""
    folder.mkdir(parents=True)
    save_file({"a": torch.rand(2, 3)}, folder / "adapter_model.safetensors")
    records.write_text(folder / "adapter_config.json", config)
    return chain.seal_adapter(folder, chain.Stamp(base_hash="b", data_hash="d"))


def record(monkeypatch: pytest.MonkeyPatch, adapter_hash: str, *overrides: str) -> None:
    """A whole run in the current directory, whose adapter has this hash."""
    monkeypatch.setitem(fake_run.TRAINED, "adapter_hash", adapter_hash)
    fake_run.write_run(paths.DATA)
    records.write_text(Path("params.yaml"), compose_text(list(overrides), ROOT / "conf"))


def put_into_cache(adapter: Path, lock: Path) -> Path:
    """Store a folder as DVC does, and name it in `lock` as the output of `train`."""
    members = []
    for file in sorted(adapter.iterdir()):
        body = file.read_bytes()
        md5 = _store(body)
        members.append({"md5": md5, "relpath": file.name})
    listing = json.dumps(members).encode()
    md5 = f"{_store(listing, '.dir')}.dir"
    out = {"path": paths.ADAPTER.as_posix(), "hash": "md5", "md5": md5}
    stages = {"train": {"cmd": "t", "outs": [out]}}
    records.write_text(lock, json.dumps({"schema": "2.0", "stages": stages}))
    return _place(md5)


def _store(body: bytes, end: str = "") -> str:
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    place = _place(md5 + end)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(body)
    return md5


def _place(md5: str) -> Path:
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


def name_in_record(adapter_hash: str, results: Path = paths.RESULTS) -> None:
    """Let the record of `train` name these weights."""
    file = paths.record("train", results)
    record = records.read_record(file)
    body = {**record.result, "adapter_hash": adapter_hash}
    records.write_record(records.Record(**{**vars(record), "result": body}), file)


def move(adapter: Path) -> None:
    """To the workspace's place, in the current directory."""
    shutil.copytree(adapter, paths.ADAPTER)
