"""An adapter that is given away: what goes, what is said of it, and what is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_adapters
import fake_run
import httpx2
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from bitrank import adapters, cli, collection, identity, models, paths, pushing, records
from bitrank.errors import UserError

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
SECRET = "hf_abcdefSECRET"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a person's home; the token of the hub is in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "jdoe"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    project = tmp_path / "jdoe" / "project"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def project(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_adapters.record(monkeypatch, fake_adapters.make_adapter(paths.ADAPTER))
    return home


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["adapters", "push", *arguments])


def everything(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_weights_and_configuration_go_to_the_byte_and_a_card_with_them(project: Path) -> None:
    answer = ask("run", "out/mine")
    assert answer.exit_code == 0, answer.exception
    pushed, own = everything(Path("out/mine")), everything(paths.ADAPTER)
    assert set(pushed) == FILES
    assert all(pushed[name] == own[name] for name in FILES - {"README.md"})
    assert [p.name for p in Path("out").iterdir()] == ["mine"]
    assert "run, sha256" in answer.stdout


def test_plain_peft_loads_it_and_computes_what_bitrank_does(
    home: Path,
    train: Callable[..., records.Record],
    quantized: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done = train("precision=nf4")
    fake_adapters.move(tmp_path / "adapter")
    fake_adapters.record(monkeypatch, done.result["adapter_hash"])
    assert ask("run", "given").exit_code == 0
    base = AutoModelForCausalLM.from_pretrained(quantized("nf4"))
    theirs = PeftModel.from_pretrained(base, "given").eval()
    own_base = models.load_model(quantized("nf4"), torch.device("cpu"))
    ours = adapters.load_adapter(own_base, paths.ADAPTER, done.treatment["base_hash"])
    tokens = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        logits = [model(input_ids=tokens).logits for model in (theirs, ours)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_the_card_tells_what_was_measured(project: Path) -> None:
    assert ask("run", "out").exit_code == 0
    card = Path("out/README.md").read_text()
    score = records.read_record(paths.record("evaluate-adapter")).result["tasks"]["task"]
    low, high = (score["acc"] + sign * 1.96 * score["acc_stderr"] for sign in (-1, 1))
    adapter = collection.find_adapter("run")
    for told in (
        f"{score['acc']:.3f} ({low:.3f} to {high:.3f})", "QLoRA (nf4, rank 8)",
        fake_run.HASH["original"], fake_run.HASH["quantized"], fake_run.HASH["data"],
        adapter.adapter_hash, identity.hash_file(Path("out/adapter_model.safetensors")),
        "| source: version | 0.1.2 |", "| learning rate | 0.001 |", "Example CPU 9000",
        "a training step: peak | 667.6 MiB", "git checkout 63dc594", "dvc repro",
        "License of the base: Apache-2.0", "### wiki, not trained",
    ):  # fmt: skip
        assert told in card, told
    assert Path("params.yaml").read_text().rstrip() in card
    assert "uncommitted" in card.partition("## Limits")[2], "`measure` ran on changed code"


def test_neither_a_home_nor_a_path_nor_a_token_goes_along(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fake_adapters.CANONICAL.replace("null", '"/srv/models/secret"')
    local = ("model=local", "model.source.path=/srv/models/my own model of customers that has a "
             "name which is longer than a line of YAML")  # fmt: skip
    fake_adapters.record(monkeypatch, fake_adapters.make_adapter(paths.ADAPTER, config), *local,
           "data=jsonl", f"data.rows.path={home}/rows.jsonl")  # fmt: skip
    fetched = records.read_record(paths.record("fetch"))
    source = {"kind": "local", "path": str(home / "model")}
    treatment = {**fetched.treatment, "source": source}
    records.write_record(
        records.Record(**{**vars(fetched), "treatment": treatment}), paths.record("fetch")
    )
    answer = ask("run", "out")
    assert answer.exit_code == 0, answer.exception
    for name, body in everything(Path("out")).items():
        for private in (SECRET, "jdoe", "/srv", "customers"):
            assert private.encode() not in body, (name, private)
    assert Path("out/adapter_config.json").read_text() == fake_adapters.CANONICAL
    assert "<a path of your own>" in Path("out/README.md").read_text()


def test_the_card_of_a_point_has_its_overrides(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = collection.find_adapter("run")
    asked = ["adapter.rank=4", "model.source.path=/srv/x y", "data.prompt='{text}: '"]
    vars(adapter)["overrides"] = asked
    pushing.push_to_folder(adapter, Path("out"))
    card = Path("out/README.md").read_text()
    assert "bitrank params adapter.rank=4 'model.source.path=<a path of your own>'" in card
    assert "/srv" not in card


@pytest.mark.parametrize("kind", ["full", "empty", "file", "link"])
def test_what_exists_is_left_as_it_is(project: Path, kind: str) -> None:
    target = Path("out")
    if kind == "file":
        target.write_text("mine")
    elif kind == "link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        if kind == "full":
            (target / "README.md").write_text("mine")
    answer = ask("run", "out")
    assert isinstance(answer.exception, UserError)
    assert "out exists" in str(answer.exception)
    assert everything(target) == ({"README.md": b"mine"} if kind == "full" else {})
    assert kind != "file" or target.read_text() == "mine"
    assert kind != "link" or target.is_symlink()


def test_weights_that_were_not_recorded_do_not_go_and_nothing_is_left(project: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, paths.ADAPTER / "adapter_model.safetensors")
    answer = ask("run", "there/out")
    assert isinstance(answer.exception, UserError)
    assert "not what `train` wrote" in str(answer.exception)
    assert list(Path("there").iterdir()) == []


def test_a_push_that_is_cut_short_leaves_no_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing.model_card, "write_card", stop)
    with pytest.raises(KeyboardInterrupt):
        pushing.push_to_folder(collection.find_adapter("run"), Path("there/out"))
    assert list(Path("there").iterdir()) == []


def test_records_that_do_not_belong_together_are_not_told(project: Path) -> None:
    fake_adapters.name_in_record("0" * 64)
    records.write_text(paths.ADAPTER / "bitrank.json", json.dumps({"adapter_hash": "0" * 64}))
    answer = ask("run", "out")
    assert isinstance(answer.exception, UserError)
    assert not Path("out").exists()


def test_weights_that_are_not_here_are_an_error_with_the_cure(project: Path) -> None:
    os.rename(paths.ADAPTER, "elsewhere")
    error = ask("run", "out").exception
    assert isinstance(error, UserError)
    assert "`dvc repro train`" in str(error)
    fake_adapters.put_into_cache(Path("elsewhere"), Path("dvc.lock"))
    assert ask("run", "out").exit_code == 0
    assert set(everything(Path("out"))) == FILES


def test_what_peft_cannot_load_is_refused(project: Path) -> None:
    os.rename(paths.ADAPTER / "adapter_config.json", paths.ADAPTER / "bottleneck.json")
    error = ask("run", "out").exception
    assert isinstance(error, UserError)
    assert "no adapter that PEFT loads" in str(error)
    assert isinstance(ask("run", "out", "--public").exception, UserError)


class Hub:
    """What the hub is asked, and what it then has."""

    def __init__(self, failing: str = "", error: Exception | None = None) -> None:
        self.failing, self.error = failing, error
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: bool | None = None

    def _answer(self, name: str) -> None:
        if self.error is not None and self.failing == name:
            raise self.error

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self._answer("create_repo")
        assert not exist_ok
        self.repos[repo_id], self.private = {}, private
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self._answer("upload_folder")
        self.repos[repo_id] = everything(Path(folder_path))

    def delete_repo(self, repo_id: str) -> None:
        self._answer("delete_repo")
        del self.repos[repo_id]


def refusal(status: int) -> errors.HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("POST", f"https://h/?{SECRET}"))
    return errors.HfHubHTTPError(f"told with {SECRET}", response=response)


def with_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Callable[..., Result]:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return lambda *options: ask("run", "hf://me/mine", *options)


def test_the_hub_gets_the_same_files_in_one_commit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    answer = with_hub(monkeypatch, hub)()
    assert answer.exit_code == 0, answer.exception
    assert "https://hub.example/me/mine" in answer.stdout
    assert ask("run", "out").exit_code == 0
    assert hub.repos == {"me/mine": everything(Path("out"))}
    assert hub.private is True
    with_hub(monkeypatch, hub)("--public")
    assert hub.private is False


FAULTS: list[tuple[str, Any, str]] = [
    ("create_repo", refusal(409), "exists on the hub, and is left as it is"),
    ("create_repo", refusal(403), "`hf auth login`"),
    ("create_repo", refusal(500), "answers 500"),
    ("create_repo", errors.LocalTokenNotFoundError(SECRET), "`hf auth login`"),
    ("create_repo", errors.HFValidationError(SECRET), "no name of a repository"),
    ("upload_folder", refusal(500), "answers 500"),
    ("upload_folder", errors.OfflineModeIsEnabled(SECRET), "check the network"),
]


@pytest.mark.parametrize(("failing", "error", "words"), FAULTS)
def test_what_the_hub_refuses_is_told_without_a_secret_and_leaves_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: Exception, words: str
) -> None:
    hub = Hub(failing, error)
    answer = with_hub(monkeypatch, hub)()
    assert isinstance(answer.exception, UserError)
    assert words in str(answer.exception)
    assert SECRET not in f"{answer.exception}{answer.output}"
    assert hub.repos == {}


def test_a_local_push_does_not_ask_the_hub(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_hub(monkeypatch, Hub("create_repo", AssertionError("asked")))
    assert ask("run", "out").exit_code == 0
