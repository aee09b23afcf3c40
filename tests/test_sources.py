"""Models from elsewhere: what is refused says what to do, and no token leaves the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT

from bitrank import composition, config, fetching, models, records, sources
from bitrank.errors import UserError
from bitrank.pins import HubModel, LocalModel
from bitrank.sources import hub

TOKEN = "hf_" + "NotARealTokenOnlyATestsOwn"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """A hub that denies by the repository's name, and quotes the request's token in its answer."""

    def do_GET(self) -> None:
        quoted = self.headers.get("Authorization", "")
        kind = self.path.split("/")[4]
        self.server.seen.append(quoted)  # type: ignore[attr-defined]
        status, code = {"gated": (401, "GatedRepo"), "closed": (403, ""),
                        "absent": (404, "RepoNotFound")}.get(kind, (200, ""))  # fmt: skip
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"denied: {quoted}")
        self.end_headers()
        files = [{"rfilename": name} for name in ("config.json", "pytorch_model.bin")]
        answer: dict[str, Any] = {"error": f"denied: {quoted}"}
        if status == 200:
            answer = {"id": f"org/{kind}", "modelId": f"org/{kind}", "sha": COMMIT,
                      "siblings": files, "private": False, "tags": []}  # fmt: skip
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    made = HTTPServer(("127.0.0.1", 0), _Hub)
    made.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gated", ("Accept its licence on https://huggingface.co/org/gated", "hf auth login")),
        ("closed", ("Accept its licence", "HF_TOKEN")),
        ("absent", ("org/absent does not exist, or is gated",)),
        ("pickled", ("pytorch_model.bin is a pickle", "save_pretrained", "model=local")),
    ],
)
def test_fetch_says_what_to_do_and_never_the_token(
    name: str, told: tuple[str, ...], server: HTTPServer, tmp_path: Path
) -> None:
    text = composition.compose_text(["model=hub", f"model.source.repo=org/{name}"], ROOT / "conf")
    (tmp_path / "params.yaml").write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, str(ROOT / "stages/fetch.py")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    assert f"Bearer {TOKEN}" in server.seen, "the token went to the hub"  # type: ignore[attr-defined]
    assert ran.stderr.startswith("error: `model.source.repo`: org/")
    assert len(ran.stderr.strip().splitlines()) == 1
    for words in told:
        assert words in ran.stderr
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not [held for held in [*written, ran.stderr.encode(), ran.stdout.encode()]
                if TOKEN.encode() in held]  # fmt: skip


def test_a_branch_is_resolved_to_a_commit_and_recorded(
    original: Path, compose: Callable[..., config.RunConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def info(repo: str, revision: str) -> SimpleNamespace:
        assert (repo, revision) == ("org/name", "main")
        files = [SimpleNamespace(rfilename=p.name) for p in original.iterdir()]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def download(repo: str, revision: str, allow_patterns: list[str]) -> str:
        assert revision == COMMIT, "what is downloaded is what was resolved"
        assert not [p for p in allow_patterns if p.endswith((".bin", ".py", "*"))]
        return str(original)

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    monkeypatch.setattr(hub, "snapshot_download", download)
    model = compose("model=hub", "model.source.repo=org/name").model
    record = fetching.fetch_base(model, tmp_path / "o", tmp_path / "t", tmp_path / "d")
    assert record.treatment["source"] == {
        "kind": "hub", "repo": "org/name", "requested": "main", "commit": COMMIT,
    }  # fmt: skip
    assert record.treatment["name"] == "org/name"
    assert TOKEN not in records.canonical_json(vars(record))


HUB_MODELS = {
    "smollm2_135m": ("HuggingFaceTB/SmolLM2-135M", "Apache-2.0"),
    "llama32_1b": ("meta-llama/Llama-3.2-1B", "Llama 3.2 Community License"),
    "llama31_8b": ("meta-llama/Llama-3.1-8B", "Llama 3.1 Community License"),
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", "Llama 2 Community License"),
    "llama2_70b": ("meta-llama/Llama-2-70b-hf", "Llama 2 Community License"),
    "qwen25_05b": ("Qwen/Qwen2.5-0.5B", "Apache-2.0"),
    "qwen25_7b": ("Qwen/Qwen2.5-7B", "Apache-2.0"),
    "falcon_7b": ("tiiuae/falcon-7b", "Apache-2.0"),
}


@pytest.mark.parametrize("option", sorted(HUB_MODELS))
def test_the_named_models(option: str, compose: Callable[..., config.RunConfig]) -> None:
    model = compose(f"model={option}").model
    assert isinstance(model.source, HubModel)
    assert (model.source.repo, model.license) == HUB_MODELS[option]
    assert model.source.revision == "main"
    assert model.name != model.source.repo
    assert model.provenance == "as published"


def local(folder: Path) -> LocalModel:
    return LocalModel(kind="local", path=str(folder), watch=str(folder))


def copy(original: Path, folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    held = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(held))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already .gptq.: take the"),
        ({"model_type": "mystery", "architectures": ["Mystery"]}, "transformers .* cannot load it"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    settings: dict[str, Any], message: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"`model.source.path`: .*{message}"):
        sources.load(local(copy(original, tmp_path / "m", **settings)), tmp_path)


def test_weights_of_another_type_are_refused(original: Path, tmp_path: Path) -> None:
    model, tokenizer = models.build_tiny(64, 2, 0)
    models.save_model(model.to(torch.float64), tokenizer, tmp_path / "m")
    with pytest.raises(UserError, match=r"weights are torch.float64; take float32"):
        sources.load(local(tmp_path / "m"), tmp_path)


def test_damaged_weights_are_refused(original: Path, tmp_path: Path) -> None:
    folder = copy(original, tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot load it"):
        sources.load(local(folder), tmp_path)


def test_a_base_with_too_few_positions_is_refused(original: Path) -> None:
    model = models.load_model(original)
    models.check_positions(model, 512)
    with pytest.raises(UserError, match=r"`data.max_sequence_tokens` is 513, .* has 512 positions"):
        models.check_positions(model, 513)
