"""Readers of data: lists, manifests, tars, regions, entities, pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from datamodules.catalogues.photo_lists import read_list
from datamodules.catalogues.picture_files import has_picture
from datamodules.catalogues.product1m import FILES, Product1MFiles
from datamodules.entity_sources.answers import AnswersSource
from datamodules.entity_sources.bio import read_bio
from datamodules.entity_sources.lexicon import Lexicon
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.pictures import decode_picture
from datamodules.region_sources.official_lmdb import OfficialLmdb
from datamodules.region_sources.official_record import OfficialRecord, to_regions
from datamodules.region_sources.official_tsv import OfficialTsv
from datamodules.regions import check_regions, pack_regions, unpack_regions
from datamodules.remote import remote_of
from datamodules.shard_reader import read_shard
from datamodules.stored_pictures import stored_pictures
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue, picture, tiny_regions, tiny_scored_regions
from tests.datamodules.tiny_shops import write_photos, write_product1m
from tests.fuzz.target import Ready, Target

COUNTS = {"train": 3, "val": 1, "test": 1, "gallery": 2}


def replaced(path: Path, read: Callable[[], Any], data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    read()


def _of_file(path: Path, files: list[bytes], read: Callable[[], Any], named: str | None = None) -> Ready:
    return Ready(files, partial(replaced, path, read), path.name if named is None else named)


def _official_list(split: str, folder: Path) -> Ready:
    raw = write_product1m(folder / "raw")
    path = raw / FILES[split]  # type: ignore[index]

    def read() -> None:
        catalogue = Product1MFiles(str(raw))
        for item in catalogue.plan(split):  # type: ignore[arg-type]
            catalogue.make(split, item)  # type: ignore[arg-type]

    return _of_file(path, [path.read_bytes()], read, str(raw))


def _photo_list(suffix: str, folder: Path) -> Ready:
    raw = write_photos(folder / "raw", num_labels=2, per_label=2, rare=0)
    rows = [("1", "a caption, with ”quotes“", "images/1.jpg", "a label"), ("2", "标题", "images/2.jpg", "")]
    names = ("id", "caption", "image", "label")
    text = {
        ".txt": (raw / "products.txt").read_text(encoding="utf-8"),
        ".csv": "\n".join([",".join(names), *(",".join(f'"{cell}"' for cell in row) for row in rows)]),
        ".jsonl": "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows),
    }[suffix]
    path = raw / f"products{suffix}"

    def read() -> None:
        read_list.cache_clear()
        for row in read_list(path):
            has_picture(raw, row.id, row.urls)

    return _of_file(path, [text.encode()], read)


def _shop(folder: Path) -> Path:
    build(TinyCatalogue(COUNTS), folder / "shop", shard_size=4, vocab_size=60, progress=False, regions=tiny_regions)
    return folder / "shop"


def _manifest(folder: Path) -> Ready:
    shop = _shop(folder)
    path = shop / "manifest.json"
    return _of_file(path, [path.read_bytes()], partial(verify, shop), str(shop))


def _tokenizer(folder: Path) -> Ready:
    from datamodules.tokenizer import load_tokenizer

    shop = _shop(folder)
    path = shop / "tokenizer.json"
    return _of_file(path, [path.read_bytes()], lambda: load_tokenizer("shards", shop).encode_batch(["红色 red"], 8))


def _rows(folder: Path) -> Ready:
    shop = _shop(folder)
    path = shop / "annotations" / "gallery.txt"
    return _of_file(path, [path.read_bytes()], partial(verify, shop))


def _shard(folder: Path) -> Ready:
    shop = _shop(folder)
    path, manifest = shop / "train-000000.tar", read_manifest(shop)
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    files = [path.read_bytes()]
    for form, mode in ((tarfile.PAX_FORMAT, "w"), (tarfile.GNU_FORMAT, "w:gz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
            for name, content in members:
                entry = tarfile.TarInfo(f"{'long-' * 30}/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        files.append(buffer.getvalue())

    def read() -> None:
        problems = []
        for reader in (lambda: list(read_shard(path)), lambda: stored_pictures(shop, manifest, "train", [0, 2])):
            try:
                reader()
            except DataError as error:
                problems.append(error)
        verify(shop)
        for problem in problems:
            raise problem

    return _of_file(path, files, read)


def _regions(folder: Path) -> Ready:
    record = TinyCatalogue(COUNTS).make("train", 0)
    sound = [pack_regions(tiny_regions(record)), pack_regions(tiny_scored_regions(record))]  # type: ignore[arg-type]
    packed = io.BytesIO()
    np.savez_compressed(packed, boxes=np.zeros((2, 4)), features=np.ones((2, 3)), size=(5, 5))
    return Ready([*sound, packed.getvalue()], lambda data: check_regions(unpack_regions(data)), "")


def _remote(folder: Path) -> Ready:
    text = json.dumps({"address": "https://host/shop", "keep": False})
    return _of_file(folder / "remote.json", [text.encode()], partial(remote_of, folder))


def _entities(file: str, folder: Path) -> Ready:
    from datamodules.entities import add_entities, entity_problems, open_rows, read_table
    from datamodules.entity_sources import LexiconSource

    shop = _shop(folder)
    (folder / "lexicon.tsv").write_text("lipstick\tkind\n口红\tkind\n", encoding="utf-8")
    add_entities(shop, LexiconSource(folder / "lexicon.tsv"), progress=False)
    path = shop / "entities" / file

    def read() -> None:
        from datamodules.manifest import file_sha256

        manifest = read_manifest(shop)
        manifest["entities"]["files"][file]["sha256"] = file_sha256(path)  # type: ignore[index]
        list(entity_problems(shop, manifest))
        read_table(shop, manifest)
        open_rows(shop, "train", manifest)

    return _of_file(path, [path.read_bytes()], read)


def _answers(folder: Path) -> Ready:
    answer = json.dumps({"status": "OK", "result": [{"word": "AHC", "tag": "brand"}, {"word": "面膜", "tag": "kind"}]})
    text = json.dumps({"item1": answer, "item2": answer})
    path = folder / "answers.json"
    return _of_file(path, [text.encode()], lambda: AnswersSource([path]).prepare([]))


def _lexicon(folder: Path) -> Ready:
    files = [
        "AHC\tbrand\n面膜\tkind\n",
        json.dumps({"AHC": "brand", "面膜": ""}),
        json.dumps(["AHC", ["面膜", "kind"]]),
    ]
    path = folder / "lexicon"
    return _of_file(path, [file.encode() for file in files], partial(Lexicon, path))


def _bio(folder: Path) -> Ready:
    path = folder / "gold.bio"
    return _of_file(path, ["A B-X\nH I-X\n面 O\n\nred\tO\nlip\tB-Y\n".encode()], partial(read_bio, path))


def _record(folder: Path) -> Ready:
    def array(values: Any) -> dict[str, Any]:
        found = np.asarray(values, np.float32)
        about = {"nd": True, "type": found.dtype.str, "kind": "", "shape": list(found.shape)}
        return about | {"data": found.tobytes()}

    fields = [array(np.ones((2, 3))), array([[0, 0, 5, 5], [1, 1, 4, 4]]), 2, 6, 7, "item", "caption"]
    source = OfficialLmdb(folder / "features.lmdb")

    def read(data: bytes) -> None:
        from datamodules.region_sources import official_lmdb

        found = source._fields(b"key", memoryview(data))
        try:
            named = {key: official_lmdb._decoded(found[key]) for key in OfficialRecord._fields if key in found}
        except official_lmdb._MALFORMED:
            return
        regions = to_regions(OfficialRecord(**named))
        if regions is not None:
            pack_regions(regions)

    return Ready([msgpack.packb(fields)], read, "")


def _tsv(folder: Path) -> Ready:
    from base64 import b64encode

    arrays = (np.array([[0, 0, 5, 5]], "<f4"), np.ones((1, 3), "<f4"))
    line = b"\t".join([b"item", b"7", b"6", b"1", *(b64encode(array.tobytes()) for array in arrays), b"title"])
    path = folder / "features.tsv"

    def read() -> None:
        source = OfficialTsv(path)
        for _, place in source.ids():
            regions = to_regions(source.read(place))
            if regions is not None:
                pack_regions(regions)

    return _of_file(path, [line + b"\n" + line.replace(b"item", b"other") + b"\n"], read, "")


def _picture(folder: Path) -> Ready:
    files = [picture(0, (40, 30), codec) for codec in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]
    buffer = io.BytesIO()
    Image.new("P", (9, 7)).save(buffer, "PNG", transparency=0)
    return Ready([*files, buffer.getvalue()], lambda data: decode_picture(data, 16), "")


TARGETS = [
    *(Target(f"list-{split}", partial(_official_list, split), (DataError,)) for split in ("train", "gallery")),
    *(Target(f"photos{suffix}", partial(_photo_list, suffix), (DataError,)) for suffix in (".txt", ".csv", ".jsonl")),
    Target("manifest", _manifest, (DataError,), is_json=True),
    Target("tokenizer", _tokenizer, (DataError,)),
    Target("rows", _rows, (DataError,)),
    Target("shard", _shard, (DataError,)),
    Target("regions", _regions, (DataError,)),
    Target("remote", _remote, (DataError,), is_json=True),
    Target("entity-table", partial(_entities, "table.json"), (DataError,), is_json=True),
    Target("entity-rows", partial(_entities, "train.npy"), (DataError,)),
    Target("answers", _answers, (DataError,), is_json=True),
    Target("lexicon", _lexicon, (DataError,)),
    Target("bio", _bio, (DataError,)),
    Target("lmdb-record", _record, (DataError,)),
    Target("tsv", _tsv, (DataError,)),
    Target("picture", _picture, (DataError,)),
]
