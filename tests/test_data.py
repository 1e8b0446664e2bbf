"""Problems from every source, what is wrong with a row, and what two splits share."""

import gzip
import io
import json
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmprm_lib import data, fields, images, world
from mmprm_lib.schema import Problem, read_records, sha256_of, write_records

MM_K12 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "mm_k12" / "k12.json"


def picture(colour="red", size=(8, 6), mode="RGB", kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def row(name, image="images/a.png", **changes) -> dict:
    return {"id": name, "question": f"What is {name}?", "answer": "7", "image_path": image} | changes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "images" / "a.png").write_bytes(picture())
    (tmp_path / "in" / "images" / "b.png").write_bytes(picture("blue"))
    return tmp_path / "in"


def from_rows(folder, rows, name="rows.json", **options):
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
    (folder / name).write_text(text)
    return data.from_files(folder / name, folder.parent / "out", **options)


def problem(name, image="a" * 64, question="What?", split="train", scene=None) -> Problem:
    return Problem(
        problem_id=name, question=question, image="images/a.png", image_sha256=image, answer="7", answer_type="number",
        source="test", split=split, scene=scene,
    )  # fmt: skip


# --- images ---------------------------------------------------------------------------------------------------------


def test_transparent_pixels_become_white():
    half = picture(
        (255, 0, 0, 127), mode="RGBA"
    )  # red: (255 * 127 + 255 * 128) / 255; green: (0 * 127 + 255 * 128) / 255
    assert images.decode(half)[0].getpixel((0, 0)) == (255, 128, 128)
    assert images.decode(picture((0, 0), mode="LA"))[0].getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_a_transparent_entry_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    decoded, suffix = images.decode(buffer.getvalue())
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    assert (decoded.mode, suffix) == ("RGB", ".png")


def test_sixteen_bits_are_scaled_and_not_clipped():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x8080, np.uint16)).save(buffer, "PNG")
    assert images.decode(buffer.getvalue())[0].getpixel((0, 0)) == (128, 128, 128)  # 0x8080 / 257 = 128


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "P"])
def test_every_other_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert images.decode(picture(0, mode=mode, kind=kind))[0].mode == "RGB"


def test_animation_gives_its_first_frame():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("lime", "red")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert images.decode(buffer.getvalue())[0].getpixel((0, 0)) == (0, 255, 0)


def test_camera_file_with_two_pictures_gives_its_first():
    buffer = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    image, suffix = images.decode(buffer.getvalue())
    assert (image.getpixel((0, 0)), suffix) == ((255, 255, 255), ".jpg")


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn: 8 x 6 pixels become 6 x 8
    assert images.decode(picture(kind="JPEG", exif=exif))[0].size == (6, 8)


def test_bomb_is_refused_from_its_header():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (6_500, 60_000):  # 42 and 3,600 million pixels; Pillow itself raises at 179 million
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(images.Rejected, match="image_bomb"):
            images.decode(bomb)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.binary(min_size=1, max_size=8))
def test_damaged_images_are_decoded_or_rejected_but_nothing_else(position, noise):
    raw = bytearray(picture(size=(30, 30), mode="RGBA", colour=(1, 2, 3, 4)))
    raw[position : position + len(noise)] = noise
    try:
        assert images.decode(bytes(raw))[0].mode == "RGB"
    except images.Rejected as why:
        assert why.reason in data.REASONS


def test_open_image_checks_the_hash_and_returns_a_copy(folder):
    problems, _ = from_rows(folder, [row("p")])
    data.open_image(problems[0]).putpixel((0, 0), (0, 0, 0))
    assert data.open_image(problems[0]).getpixel((0, 0)) == (255, 0, 0)
    images._cache.clear()
    problems[0].image_path.write_bytes(picture("green"))
    with pytest.raises(ValueError, match="was changed"):
        data.open_image(problems[0])


def test_open_image_refuses_links(folder):
    problems, _ = from_rows(folder, [row("p")])
    path = problems[0].image_path
    path.unlink()
    path.symlink_to(folder / "images" / "a.png")
    with pytest.raises(ValueError):
        data.open_image(problems[0])


def test_cache_stays_within_its_bytes(folder, monkeypatch):
    problems, _ = from_rows(folder, [row("p"), row("q", "images/b.png")])
    images._cache.clear()
    monkeypatch.setattr(images, "_cached_bytes", 0)
    monkeypatch.setattr(images, "CACHE_BYTES", 200)  # one image of 8 * 6 * 3 = 144 bytes
    for p in problems:
        data.open_image(p)
    assert list(images._cache) == [(str(problems[1]._root / problems[1].image), problems[1].image_sha256)]


# --- local files ----------------------------------------------------------------------------------------------------


def test_files_become_a_folder_that_stands_by_itself(folder):
    problems, bad = from_rows(folder, [row("p"), row("q", "images/b.png", answer="$\\pi$")])
    assert bad == []
    out = folder.parent / "out"
    write_records(out / "problems.jsonl", problems)
    for path in folder.rglob("*.png"):
        path.unlink()
    again = read_records(out / "problems.jsonl", Problem)
    assert again == problems
    assert [p.answer_type for p in again] == ["number", "expression"]
    assert again[0].image == f"images/{sha256_of(picture())[:32]}.png"
    assert [data.open_image(p).getpixel((0, 0)) for p in again] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.gz"])
def test_every_file_form_gives_the_same_problems(folder, name):
    rows = [row("p"), row("q")]
    text = json.dumps(rows) if ".jsonl" not in name else "\n".join(map(json.dumps, rows))
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    problems, bad = data.from_files(folder / name, folder.parent / "out", source="s", split="dev")
    assert [(p.problem_id, p.source, p.split) for p in problems] == [("p", "s", "dev"), ("q", "s", "dev")]
    assert bad == []


def test_columns_are_mapped(folder):
    rows = [{"q": "?", "gold": "B", "pic": ["images/a.png"], "n": 5, "opts": ["(A) 3", "(B) 4"], "part": "dev"}]
    columns = {"id": "n", "question": "q", "answer": "gold", "image": "pic", "choices": "opts", "split": "part"}
    (found,), bad = from_rows(folder, rows, columns=columns)
    assert bad == []
    assert (found.problem_id, found.choices, found.answer, found.split) == ("5", ["3", "4"], "B", "dev")
    assert found.answer_type == "choice"
    with pytest.raises(ValueError, match="must map"):
        from_rows(folder, rows, columns={"id": "n"})
    with pytest.raises(ValueError, match="must map"):
        from_rows(folder, rows, columns=columns | {"picture": "pic"})


def test_answer_type_column_is_taken_and_checked(folder):
    columns = data.COLUMNS | {"answer_type": "kind"}
    (found,), bad = from_rows(folder, [row("p", kind="text"), row("q", kind="essay")], columns=columns)
    assert found.answer_type == "text"
    assert [(b.id, b.reason) for b in bad] == [("q", "invalid_record")]


BAD = [
    (17, "broken_row"),
    ({"id": "x", "question": "?"}, "missing_column"),
    (row(""), "empty_id"),
    (row("good"), "duplicate_id"),
    (row("x", question=" "), "empty_question"),
    (row("x", question=None), "empty_question"),
    (row("x", answer="$$ $$"), "empty_gold"),
    (row("x", answer=None), "empty_gold"),
    (row("x", answer="1.\n2."), "broken_gold"),
    (row("x", None), "no_image"),
    (row("x", ""), "no_image"),
    (row("x", "images/none.png"), "no_image"),
    (row("x", "images"), "no_image"),
    (row("x", "images/pipe"), "no_image"),
    (row("x", "https://example.org/a.png"), "no_image"),
    (row("x", {"bytes": "AA"}), "no_image"),
    (row("x", ["images/a.png", "images/b.png"]), "several_images"),
    (row("x", "images/broken.png"), "broken_image"),
    (row("x", "rows.json"), "broken_image"),
    (row("x", "images/cut.png"), "broken_image"),
    (row("x", "../secret.png"), "path_escapes"),
    (row("x", "images/../../secret.png"), "path_escapes"),
    (row("x", "/etc/hostname"), "path_escapes"),
    (row("x", "images/link.png"), "path_escapes"),
    (row("x", "linked/secret.png"), "path_escapes"),
    (row("x", "images/a\0.png"), "path_escapes"),
]


@pytest.fixture
def traps(folder):
    (folder.parent / "secret.png").write_bytes(picture())
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (folder / "images" / "cut.png").write_bytes(picture(size=(90, 90))[:60])
    (folder / "images" / "link.png").symlink_to("a.png")
    (folder / "linked").symlink_to(folder.parent)
    os.mkfifo(folder / "images" / "pipe")
    return folder


@pytest.mark.parametrize(("bad_row", "reason"), BAD)
def test_bad_row_is_reported_with_its_reason(traps, bad_row, reason):
    problems, bad = from_rows(traps, [row("good"), bad_row, row("last")])
    assert [p.problem_id for p in problems] == ["good", "last"]
    assert [(b.row, b.reason) for b in bad] == [(1, reason)]
    assert reason in data.REASONS and bad[0].detail


def test_strict_makes_the_first_bad_row_an_error(traps):
    with pytest.raises(ValueError, match=r"rows, row 1 \(x\): no_image.*strict: false"):
        from_rows(traps, [row("good"), row("x", "images/none.png")], strict=True)


def test_file_size_limit_is_an_image_bomb(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    assert from_rows(folder, [row("x")])[1][0].reason == "image_bomb"


def test_broken_lines_are_rows_but_a_broken_array_is_an_error(folder):
    (folder / "rows.jsonl").write_text(json.dumps(row("p")) + "\n{\n" + "[" * 5000 + "\n")
    problems, bad = data.from_files(folder / "rows.jsonl", folder.parent / "out")
    assert len(problems) == 1 and [b.reason for b in bad] == ["broken_row", "broken_row"]
    (folder / "rows.json").write_text("[{")
    with pytest.raises(ValueError, match="element 1, .*no JSON array.*one row a line in a .jsonl file"):
        data.from_files(folder / "rows.json", folder.parent / "out")
    (folder / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found '\{\}', wanted '\['"):
        data.from_files(folder / "rows.json", folder.parent / "out")
    with pytest.raises(FileNotFoundError, match="set `path`"):
        data.from_files(folder / "none.json", folder.parent / "out")


def test_n_limits_the_rows(folder):
    assert len(from_rows(folder, [row(str(i)) for i in range(5)], n=3)[0]) == 3


@pytest.mark.parametrize(
    ("value", "gold", "expected"),
    [
        (["3", "4"], "(B)", (["3", "4"], "B")),
        (["3", "4"], "4", (["3", "4"], "B")),
        ('["A. 3", "B. 4"]', "A", (["3", "4"], "A")),
        ({"B": "4", "A": "3", "C": None}, "B", (["3", "4"], "B")),
        (None, "4", ([], "4")),
    ],
)
def test_options_in_every_form(value, gold, expected):
    assert fields.choices_of(value, gold) == expected


@pytest.mark.parametrize(
    ("value", "gold"), [(["3", "4"], "5"), (["3", "3"], "3"), ("3 or 4", "3"), (["3"], "A"), (["3", "4"], "C")]
)
def test_options_without_the_gold_are_bad(value, gold):
    with pytest.raises(images.Rejected, match="bad_choices"):
        fields.choices_of(value, gold)


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("$$32$$", "number"), ("-0.5", "number"), ("1,234", "number"), ("145°", "number"), ("30${}^\\circ $", "number"),
        ("$\\frac{3}{4}$.", "number"), ("\\number{24}", "number"), ("36.", "number"), ("12%", "number"),
        ("2.4.", "expression"), ("96\n376", "expression"), ("$$7$$ $$10$$", "expression"),
        ("$2\\sqrt{2}$", "expression"), ("(7, 3)", "expression"), ("x < −2", "expression"), ("a+b", "expression"),
        ("$$[-4,3]$$", "expression"), ("Yes", "text"), ("rhombus.", "text"), (">", "text"), ("$$A$$", "text"),
        ("the angles are equal", "text"),
    ],
)  # fmt: skip
def test_answer_type_by_looks(gold, kind):
    assert data.answer_type_of("How many?", gold, []) == kind


def test_answer_type_is_choice_where_there_are_options():
    assert data.answer_type_of("Which?", "B", ["1", "2"]) == "choice"
    assert data.answer_type_of("Which?\nA. one\nB. two", "$$B$$", []) == "choice"
    assert data.answer_type_of("Which of A and B?", "B", []) == "text"


def test_unescaped_latex_is_restored():
    assert fields.clean("a^3 \times a = \text{b} + \frac12 \beta") == r"a^3 \times a = \text{b} + \frac12 \beta"
    assert fields.clean("a\tb\x00c\nd") == "a b c\nd"


@given(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())))
def test_clean_text_has_no_control_character_and_stays_clean(value):
    text = fields.clean(value)
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert fields.clean(text) == text
    text.encode()


@pytest.mark.skipif(not MM_K12.exists(), reason="../shared/data/mm_k12 is not there: published rows not checked")
def test_mm_k12_loads_but_for_the_one_broken_gold(tmp_path):
    problems, bad = data.from_files(MM_K12, tmp_path)
    assert len(problems) == 249
    assert [(b.row, b.reason) for b in bad] == [(161, "broken_gold")]
    assert not any("\t" in p.question for p in problems)


# --- the hub's formats, from a local folder -------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def hub_folder(tmp_path, datasets, image_feature=True):
    rows = {"id": ["p", "q", "r"], "question": ["?"] * 3, "answer": ["1", "2", ""]}
    rows["image"] = [picture(), b"broken", picture()]
    kinds = {key: datasets.Value("string") for key in ("id", "question", "answer")}
    if image_feature:
        rows["image"] = [{"bytes": raw, "path": None} for raw in rows["image"]]
    kinds["image"] = datasets.Image(decode=False) if image_feature else datasets.Value("binary")
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    return str(tmp_path / "hub")


HUB = data.COLUMNS | {"image": "image"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("image_feature", [False, True])
def test_hub_parquet_keeps_the_bytes_and_reports_bad_rows(tmp_path, offline, image_feature, streaming):
    name = hub_folder(tmp_path, offline, image_feature)
    options = {"columns": HUB, "streaming": streaming}
    problems, bad = data.from_hub(name, "abc", {"train": "train"}, tmp_path / "out", **options)
    assert [(p.problem_id, p.split, p.image_sha256) for p in problems] == [("p", "train", sha256_of(picture()))]
    assert problems[0].source == "hub@abc"
    assert [(b.row, b.id, b.reason) for b in bad] == [(1, "q", "broken_image"), (2, "r", "empty_gold")]
    limited = data.from_hub(name, "abc", {"train": "train"}, tmp_path / "out", limits={"train": 1}, **options)
    assert (len(limited[0]), limited[1]) == (1, [])


def test_hub_image_folder_and_slices(tmp_path, offline):
    folder = tmp_path / "hub" / "train"
    folder.mkdir(parents=True)
    for name, colour in (("p", "red"), ("q", "blue")):
        (folder / f"{name}.png").write_bytes(picture(colour))
    rows = [{"file_name": f"{name}.png", "id": name, "question": "?", "answer": "1"} for name in "pq"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    splits = {"dev": "train[:1]", "test": "train[1:]"}
    problems, bad = data.from_hub(str(tmp_path / "hub"), "abc", splits, tmp_path / "out", columns=HUB)
    assert bad == []
    assert {(p.problem_id, p.split, data.open_image(p).getpixel((0, 0))) for p in problems} == {
        ("p", "dev", (255, 0, 0)),
        ("q", "test", (0, 0, 255)),
    }


def test_hub_paths_are_files_of_the_data_set_only(tmp_path, offline):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    rows = [row("p", "a.png"), row("q", "../secret.png"), row("r", str(tmp_path / "secret.png"))]
    (tmp_path / "hub" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems, bad = data.from_hub(str(tmp_path / "hub"), "abc", {"train": "train"}, tmp_path / "out")
    assert [p.problem_id for p in problems] == ["p"]
    assert [b.reason for b in bad] == ["path_escapes", "path_escapes"]


def test_path_within_an_image_feature_cannot_leave_the_data_set(tmp_path):
    with pytest.raises(images.Rejected, match="path_escapes"):
        data._cached_path("/etc/hostname", [tmp_path])


def test_hub_needs_a_revision_and_passes_it_on(tmp_path, offline, monkeypatch):
    with pytest.raises(ValueError, match="revision ''"):
        data.from_hub("owner/name", "", {"train": "train"}, tmp_path)
    calls = []

    def fake(*args, **kwargs):
        calls.append((args, kwargs))
        return offline.Dataset.from_dict({"id": [], "question": [], "answer": [], "image": []})

    monkeypatch.setattr(offline, "load_dataset", fake)
    commit = "4f2a" * 10
    data.from_hub("owner/name", commit, {"dev": "validation"}, tmp_path, columns=HUB, config="big")
    assert calls == [(("owner/name",), {"split": "validation", "name": "big", "revision": commit, "streaming": False})]


def test_branch_is_resolved_to_its_commit(monkeypatch):
    import huggingface_hub

    class Hub:
        def dataset_info(self, name, revision):
            assert (name, revision) == ("owner/name", "main")
            return SimpleNamespace(sha="4f2a" * 10)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert data._commit("owner/name", "main") == "4f2a" * 10


# --- the embedded world ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worldly(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    return data.load("world", {"train": 40, "dev": 10, "test": 10}, 3, out)


def test_world_problems_have_their_images(worldly):
    problems, bad = worldly
    assert bad == [] and [p.split for p in problems] == ["train"] * 40 + ["dev"] * 10 + ["test"] * 10
    for p in problems:
        assert p.image_path.stat().st_size and data.open_image(p).size == (112, 112)


def test_one_seed_gives_the_same_world_and_another_seed_another(worldly, tmp_path):
    sizes = {"train": 40, "dev": 10, "test": 10}
    assert data.from_world(sizes, 3, tmp_path) == worldly[0]
    assert data.from_world(sizes, 4, tmp_path) != worldly[0]


def test_dials_reach_the_world(tmp_path):
    assert {p.answer_type for p in data.from_world({"train": 12}, 0, tmp_path, choice_share=1.0)} == {"choice"}
    assert "choice" not in {p.answer_type for p in data.from_world({"train": 12}, 0, tmp_path, choice_share=0.0)}


def test_no_scene_of_the_world_stands_in_two_splits(worldly):
    table = data.overlap_table(worldly[0])
    assert table.loc[table["kind"] == "scene", "n_a"].tolist() == [0, 0, 0]


def test_load_removes_the_images_of_an_earlier_run_and_nothing_else(tmp_path):
    first, _ = data.load("world", {"train": 3}, 0, tmp_path)
    (tmp_path / "images" / "mine.png").write_bytes(b"keep")
    second, _ = data.load("world", {"train": 2}, 1, tmp_path)
    assert {p.name for p in (tmp_path / "images").iterdir()} == {Path(p.image).name for p in second} | {"mine.png"}


def test_load_divides_files_and_refuses_unknown_sources(folder):
    (folder / "rows.json").write_text(json.dumps([row(str(i), f"images/{'ab'[i % 2]}.png") for i in range(6)]))
    problems, _ = data.load("files", {"train": 2, "test": 2}, 0, folder.parent / "out", path=folder / "rows.json")
    assert sorted(p.split for p in problems) == ["test", "test", "train", "train"]  # 4 of 6 rows read, 2 of each image
    with pytest.raises(ValueError, match="world, files or hub"):
        data.load("web", {"train": 2}, 0, folder.parent / "out")


def test_load_keeps_hub_splits_that_have_our_names_and_divides_the_others(tmp_path, offline):
    name = hub_folder(tmp_path, offline)
    options = {"dataset_id": name, "revision": "abc", "columns": HUB}
    kept, _ = data.load("hub", {"train": 1, "test": 5}, 0, tmp_path / "out", hub_splits={"test": "train"}, **options)
    assert [p.split for p in kept] == ["test"]
    none = {"train": 1, "test": 0}
    assert data.load("hub", none, 0, tmp_path / "out", hub_splits={"test": "train"}, **options) == ([], [])
    with pytest.raises(ValueError, match="no problem"):
        data.load("hub", {"train": 0}, 0, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="name these or only others"):
        data.load("hub", none, 0, tmp_path / "out", hub_splits={"train": "train", "all": "train"}, **options)
    divided, _ = data.load("hub", {"dev": 5}, 0, tmp_path / "out", hub_splits={"all": "train"}, **options)
    assert [p.split for p in divided] == ["dev"]


# --- splits ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(0, 5))
def test_problems_of_one_image_stay_together_and_sizes_are_met(groups, seed):
    problems = [problem(str(i), f"{group:064x}") for i, group in enumerate(groups)]
    divided = data.split_by(problems, {"train": 0.5, "test": 0.5}, seed)
    assert [p.problem_id for p in divided] == [p.problem_id for p in problems]
    assert len({(p.image_sha256, p.split) for p in divided}) == len(set(groups))
    largest = max(groups.count(group) for group in groups)
    assert abs(sum(p.split == "train" for p in divided) - len(groups) / 2) <= largest / 2


def test_split_by_follows_the_seed_and_the_fractions():
    problems = [problem(str(i), f"{i:064x}") for i in range(100)]

    def split(seed, **fractions):
        return [p.split for p in data.split_by(problems, fractions, seed)]

    assert split(0, train=0.8, dev=0.2) == split(0, train=0.8, dev=0.2) != split(1, train=0.8, dev=0.2)
    assert split(0, train=0.8, dev=0.2).count("dev") == 20  # 0.2 * 100
    assert set(split(0, train=0.0, dev=1.0)) == {"dev"}
    with pytest.raises(ValueError, match="sum to 1"):
        split(0, train=0.5, dev=0.6)


def test_overlap_on_a_hand_case():
    a = [problem("a1", "1" * 64, "How  MANY?"), problem("a2", "2" * 64, "Why"), problem("a3", "3" * 64, "Which bar?")]
    b = [problem("b1", "1" * 64, "how many"), problem("b2", "4" * 64, "why?"), problem("b3", "3" * 64, "Which line?")]
    table = data.overlap(a, b).set_index("kind")
    assert table["n_a"].to_dict() == {"image": 2, "question": 2, "image and question": 1, "scene": 0}
    assert table.loc["image and question", "example"] == "a1 = b1"
    assert data.overlap(a, [])["n_a"].tolist() == [0, 0, 0, 0]


def test_scenes_are_compared_by_what_the_figure_shows(worldly):
    scene = worldly[0][0].scene
    table = data.overlap([problem("a", "1" * 64, scene=scene)], [problem("b", "2" * 64, scene=dict(scene))])
    assert table.set_index("kind").loc["scene", ["n_a", "n_b"]].tolist() == [1, 1]
    assert world.scene_key(scene) == world.scene_key(json.loads(json.dumps(scene)))


def test_near_images_are_found_by_distance(folder):
    ramp = Image.linear_gradient("L").resize((64, 64))
    flipped, dotted = ramp.rotate(90), ramp.rotate(270)
    dotted.putpixel((3, 3), 0)
    for name, image in (("x", ramp.rotate(270)), ("y", dotted), ("z", flipped)):
        image.save(folder / "images" / f"{name}.png")
    found, bad = from_rows(folder, [row(n, f"images/{n}.png") for n in "xyz"])
    assert bad == [] and data.overlap(found[:1], found[1:])["n_a"].tolist()[0] == 0
    near = data.overlap(found[:1], found[1:], near=4).set_index("kind").loc["near image"]
    assert near.tolist() == [1, 1, "x ~ y"]  # the flipped ramp differs in all 64 bits
    assert data.overlap(found[:1], found[2:], near=63).iloc[-1]["n_a"] == 0
    assert data.overlap(found[:1], found[2:], near=64).iloc[-1]["n_a"] == 1


def test_guess_floor_is_the_mean_chance():
    four = problem("a").model_copy(update={"choices": list("wxyz"), "answer": "A", "answer_type": "choice"})
    assert data.guess_floor([four, problem("b")]) == 0.125  # (1/4 + 0) / 2
    assert np.isnan(data.guess_floor([]))


def test_tables_count_by_split(worldly):
    table = data.frame(worldly[0])
    counts = data.counts(table, "family", "split")
    assert counts["n"].sum() == 60 and counts.groupby("split")["share"].sum().round(9).eq(1).all()
    assert table["n_steps"].between(3, 8).all()
    shown = data.examples(worldly[0])
    assert len({(p.scene["family"], p.answer_type == "choice") for p in shown}) == len(shown) >= len(world.FAMILIES)
    assert data.counts(data.frame([problem("a")]), "n_steps", "split")["n_steps"].tolist() == ["unknown"]
