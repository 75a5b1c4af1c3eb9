"""Shards on a web server: the same samples, the same guarantees, kept or fetched each time."""

from __future__ import annotations

import json
import shlex
import shutil
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules import remote
from datamodules.annotations import read_rows
from datamodules.batch import InputSpec
from datamodules.entities import add_entities
from datamodules.entity_sources import tag_filter
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.product1m import Product1M
from datamodules.region_set_writer import RegionSetWriter
from datamodules.region_sets import check_region_set
from datamodules.remote import link
from datamodules.shard_reader import read_shard
from datamodules.stored_pictures import stored_pictures
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.test_entities import Words
from tests.datamodules.tiny_catalogue import TinyCatalogue
from tests.datamodules.tiny_sets import ABOUT, WIDTH, rows_of, write_set

COUNTS = {"train": 12, "val": 3, "test": 3, "gallery": 4}
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http addresses with curl")


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked[self.path.rpartition("/")[2]] += 1
        super().do_GET()

    def log_message(self, *arguments):
        """Quiet."""


@pytest.fixture
def there(tmp_path):
    folder = tmp_path / "there" / "shop"
    build(TinyCatalogue(COUNTS), folder, shard_size=6, vocab_size=60, progress=False)
    return folder


@pytest.fixture
def server(there, monkeypatch):
    monkeypatch.setattr(remote, "_WAIT_S", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(there.parent)))
    server.asked = Counter()
    server.address = f"http://127.0.0.1:{server.server_address[1]}/shop"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _ids(folder: Path, workers: int) -> list[list[str]]:
    data = Product1M(str(folder), batch_size=4, num_workers=workers, steps_per_epoch=3)
    data.use_input_spec(InputSpec("shards", visual_input="grid", image_size_px=16))
    data.setup("fit")
    batches = [batch.index_B.tolist() for batch in data.train_dataloader()]
    data.teardown("fit")
    return batches


@pytest.mark.parametrize(("keep", "workers"), [(False, 0), (True, 1)])
def test_a_linked_folder_trains_and_verifies_like_the_one_it_is_linked_to(tmp_path, there, server, keep, workers):
    here = tmp_path / "here"
    assert link(server.address, here, keep)["data_hash"] == read_manifest(there)["data_hash"]
    assert not list(here.glob("*.tar")), "nothing large is fetched before it is read"
    assert _ids(here, workers) == _ids(there, workers)
    assert verify(here) == []
    assert read_rows(here, "val", 3) == read_rows(there, "val", 3)
    manifest = read_manifest(here)
    assert stored_pictures(here, manifest, "test", [1]) == stored_pictures(there, manifest, "test", [1])
    assert len(list(here.glob("*.tar"))) == (5 if keep else 0)
    assert not list(here.glob(".*.tmp"))
    fetched = server.asked["gallery-000000.tar"]
    list(read_shard(here / "gallery-000000.tar"))
    assert server.asked["gallery-000000.tar"] == fetched + (not keep)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_cut, "bytes, not"), (_flip, "another sha256"), (Path.unlink, "cannot be read"), (lambda path: None, "")],
)
def test_no_sample_of_another_shard_is_used_and_the_error_names_address_and_remedy(
    tmp_path, there, server, damage, words
):
    link(server.address, tmp_path / "here")
    damage(there / "val-000000.tar")
    shard = tmp_path / "here" / "val-000000.tar"
    if not words:
        assert len(list(read_shard(shard))) == 3
        return
    with pytest.raises(DataError) as error:
        next(read_shard(shard))
    assert all(one in str(error.value) for one in (f"{server.address}/val-000000.tar", words, "data link ADDRESS"))
    assert server.asked["val-000000.tar"] == 3, "tried again before giving up"
    assert [words in problem for problem in verify(tmp_path / "here")].count(True) == 1


def test_linking_again_takes_over_changes_and_keeps_what_is_the_same(tmp_path, there, server):
    here = tmp_path / "here"
    link(server.address, here, keep=True)
    for name in ("train-000000", "val-000000"):
        list(read_shard(here / f"{name}.tar"))
    build(TinyCatalogue(COUNTS), there, shard_size=6, vocab_size=60, progress=False, seed=1)
    assert link(server.address, here, keep=True) == read_manifest(there)
    assert [path.name for path in here.glob("*.tar")] == ["val-000000.tar"]
    assert verify(here) == []


def test_region_sets_are_written_and_read_beside_shards_that_are_elsewhere(tmp_path, there, server):
    here = tmp_path / "here"
    link(server.address, here)
    mine = write_set(here)
    assert mine["hash"] == write_set(there)["hash"]
    assert verify(here) == []
    spec = InputSpec(visual_input="regions", region_width=WIDTH, num_regions=8, text_length=10)
    data = Product1M(str(here), batch_size=4, num_workers=0, steps_per_epoch=3, region_set="detected")
    data.use_input_spec(spec)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3


def test_what_was_made_here_stays_when_the_folder_is_linked_again(tmp_path, there, server):
    here = tmp_path / "here"
    link(server.address, here)
    mine = write_set(here)
    entities = add_entities(here, Words(), progress=False)
    half = RegionSetWriter(here, "half", ABOUT)
    half.write("val", 0, rows_of(here, "val", "val-000000.tar"))
    write_set(there, "theirs")
    manifest = link(server.address, here)
    assert manifest["region_sets"].keys() == {"detected", "theirs"}
    assert manifest["region_sets"]["detected"] == mine
    assert manifest["entities"] == entities
    assert ("val", 0) not in RegionSetWriter(here, "half", ABOUT).pending()
    for file in here.glob("*-regions-half-*"):
        file.unlink()
    shutil.rmtree(here / ".region-sets")
    assert verify(here) == []
    assert not [path for path in tmp_path.iterdir() if path not in (here, there.parent)]


def test_a_set_that_the_shards_have_left_behind_is_told_and_one_of_the_same_name_is_not_lost(
    tmp_path, there, server, caplog
):
    here = tmp_path / "here"
    link(server.address, here)
    write_set(here)
    write_set(there, about={"run_id": "another"}, change=lambda split, rows: rows[::-1])
    files = sorted(path.name for path in here.iterdir())
    with pytest.raises(DataError, match="lists another of that name"):
        link(server.address, here)
    assert sorted(path.name for path in here.iterdir()) == files
    assert verify(here) == []
    for path in there.glob("*-regions-*"):
        path.unlink()
    build(TinyCatalogue(COUNTS), there, shard_size=6, vocab_size=60, progress=False, seed=1)
    assert link(server.address, here)["region_sets"] == {}
    assert "region set 'detected' lacks tars, or is of other shards, and is removed" in caplog.text
    assert not list(here.glob("*-regions-*"))


def test_own_entities_stay_and_the_address_s_own_are_taken_over_when_they_change(tmp_path, there, server, caplog):
    class Others(Words):
        def settings(self):
            return {"kind": "others"}

        def find(self, items):
            return ([one for one in found if one.tag == "tag0"] for found in super().find(items))

    add_entities(there, Words(), progress=False)
    link(server.address, tmp_path / "plain")
    link(server.address, tmp_path / "own")
    mine = add_entities(tmp_path / "own", Others(), progress=False)
    theirs = add_entities(there, Words(), tag_filter(drop=["number"]), progress=False)
    assert link(server.address, tmp_path / "plain")["entities"] == theirs
    assert link(server.address, tmp_path / "own", keep=True)["entities"] == mine
    assert "keeps its own entities" in caplog.text
    assert link(server.address, tmp_path / "own")["entities"] == mine, "also the third time"
    assert verify(tmp_path / "own") == []


def test_a_set_of_the_address_is_taken_over_when_it_is_written_again(tmp_path, there, server):
    here = tmp_path / "here"
    write_set(there)
    link(server.address, here, keep=True)
    assert verify(here) == []  # fetches and keeps all
    for path in there.glob("*-regions-*"):
        path.unlink()
    (there / "manifest.json").write_text(json.dumps({**read_manifest(there), "region_sets": {}}))
    theirs = write_set(there, change=lambda split, rows: rows[::-1])
    assert link(server.address, here, keep=True)["region_sets"]["detected"] == theirs
    assert verify(here) == []


def test_linking_again_mends_a_damaged_address_and_allows_its_command(tmp_path, there, server, monkeypatch):
    here = tmp_path / "here"
    link(server.address, here)
    (here / "remote.json").write_text('{"address": "ht')
    with pytest.raises(DataError, match="is damaged"):
        next(read_shard(here / "val-000000.tar"))
    command = f"pipe:cat {shlex.quote(str(there))}/{{}}"
    link(command, here)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another home"))
    with pytest.raises(DataError, match="not linked a folder by"):
        next(read_shard(here / "val-000000.tar"))
    link(command, here)
    assert verify(here) == []


def test_a_symbolic_link_stays_one_and_what_it_leads_to_is_linked(tmp_path, server):
    (tmp_path / "big disk" / "shop").mkdir(parents=True)
    (tmp_path / "here").symlink_to(tmp_path / "big disk" / "shop")
    for _ in range(2):
        link(server.address, tmp_path / "here")
        assert (tmp_path / "here").is_symlink()
        assert verify(tmp_path / "big disk" / "shop") == []
    assert [path.name for path in (tmp_path / "big disk").iterdir()] == ["shop"]


def test_a_signature_stays_at_the_end_of_each_address(tmp_path, there, server):
    link(f"{server.address}?sv=1&sig=abc", tmp_path / "here")
    assert verify(tmp_path / "here") == []
    assert server.asked["val-000000.tar?sv=1&sig=abc"] == 1


def test_an_address_of_something_else_is_told_as_it_was_given(tmp_path, there, server):
    (there / "manifest.json").write_text("<html>")
    with pytest.raises(DataError, match="not readable as JSON") as error:
        link(server.address, tmp_path / "here")
    assert f"{server.address}/manifest.json" in str(error.value)
    assert ".tmp" not in str(error.value)


@pytest.mark.parametrize("step", ["write_manifest", "os.replace"])
def test_a_link_that_breaks_off_loses_nothing_and_is_made_again(tmp_path, there, server, monkeypatch, step):
    here = tmp_path / "here"
    link(server.address, here)
    mine, entities = write_set(here), add_entities(here, Words(), progress=False)
    build(TinyCatalogue(COUNTS), there, shard_size=6, vocab_size=70, progress=False)  # other tokenizer, same shards

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"datamodules.relinking.{step}", full)
    with pytest.raises(OSError, match="No space"):
        link(server.address, here)
    monkeypatch.undo()
    monkeypatch.setattr(remote, "_WAIT_S", 0)
    again = link(server.address, here)
    assert again["region_sets"]["detected"] == mine
    assert again["entities"] in (None, entities)
    assert verify(here) == []
    assert not list(here.glob(".link*"))


def test_a_first_link_that_was_killed_is_no_folder_of_other_things(tmp_path, server):
    (tmp_path / "here" / ".link.1.tmp").mkdir(parents=True)
    link(server.address, tmp_path / "here")
    assert verify(tmp_path / "here") == []
    assert not list((tmp_path / "here").glob(".link*"))


def test_a_kept_sidecar_of_the_address_is_fetched_again_and_one_made_here_is_not(tmp_path, there, server):
    here = tmp_path / "here"
    write_set(there, "theirs")
    link(server.address, here, keep=True)
    write_set(here, "mine")
    assert verify(here) == []
    for name in ("theirs", "mine"):
        path = here / f"val-regions-{name}-000000.tar"
        path.write_bytes(path.read_bytes()[:1000])
    manifest = read_manifest(here)
    check_region_set(here, ["val"], manifest, "theirs")
    assert len(list(read_shard(here / "val-000000.tar", sidecar=here / "val-regions-theirs-000000.tar"))) == 3
    with pytest.raises(DataError, match="Write it with"):
        check_region_set(here, ["val"], manifest, "mine")
    with pytest.raises(DataError, match="predict"):
        list(read_shard(here / "val-000000.tar", sidecar=here / "val-regions-mine-000000.tar"))


def test_a_damaged_manifest_is_mended_by_linking_again_and_costs_no_tar_made_here(tmp_path, there, server):
    here = tmp_path / "here"
    link(server.address, here)
    mine = write_set(here)
    (here / "manifest.json").write_text("{")
    assert link(server.address, here)["region_sets"] == {}
    assert all((here / tar["file"]).is_file() for part in mine["splits"].values() for tar in part["shards"])
    assert any("which is not finished" in problem for problem in verify(here))


def test_a_folder_of_other_things_is_not_taken_away(tmp_path, server):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.tex").write_text("x")
    for name in ("documents", "documents/thesis.tex"):
        with pytest.raises(DataError, match="is there, and is no linked folder"):
            link(server.address, tmp_path / name)
    assert (tmp_path / "documents" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("file", ["annotations/val.txt", "tokenizer.json"])
def test_small_files_that_do_not_belong_to_the_manifest_are_refused(tmp_path, there, server, file):
    (there / file).write_bytes((there / file).read_bytes() + b" ")
    with pytest.raises(DataError, match="data_hash does not follow"):
        link(server.address, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_command_is_run_only_if_the_user_names_it(tmp_path, there):
    link(f"pipe:cat {shlex.quote(str(there))}/{{}}", tmp_path / "here")
    assert verify(tmp_path / "here") == []
    manifest = (there / "manifest.json").read_text()
    (there / "manifest.json").write_text(manifest.replace("val-000000.tar", "pipe:touch x"))
    with pytest.raises(DataError, match=r"splits\.val\.shards"):
        link(f"pipe:cat {shlex.quote(str(there))}/{{}}", tmp_path / "other")


def test_a_kept_tar_that_was_cut_is_fetched_again(tmp_path, there, server):
    here = tmp_path / "here"
    link(server.address, here, keep=True)
    assert verify(here) == []
    _cut(here / "val-000000.tar")
    assert _ids(here, 0) == _ids(there, 0)
    assert len(list(read_shard(here / "val-000000.tar"))) == 3
    assert verify(here) == []


def test_a_server_that_is_not_there_is_told_once_for_each_tar_in_words(tmp_path, there, server):
    link(server.address, tmp_path / "here")
    (there / "val-000000.tar").unlink()
    (problem,) = (one for one in verify(tmp_path / "here") if "val-000000" in one)
    assert "refused, missing, or an error of the server, curl's exit 22" in problem


def test_what_cannot_be_linked_says_why(tmp_path, there, server):
    for address, words in (
        ("ftp://host/shop", "should begin with one of"),
        ("pipe:cat x", "where the file's name goes"),
        (server.address + "-gone", r"manifest\.json cannot be read"),
    ):
        with pytest.raises(DataError, match=words):
            link(address, tmp_path / "here")
    with pytest.raises(DataError, match="shards of its own"):
        link(server.address, there)
    link(server.address, tmp_path / "here")
    with pytest.raises(DataError, match="linked to shards elsewhere"):
        build(TinyCatalogue(COUNTS), tmp_path / "here", progress=False)
