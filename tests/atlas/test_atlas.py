"""The atlas: complete, labelled, small, safe for any name, and clear about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny_tree, write_params
from fake_generated import write_images
from fake_results import SLUGS, N, write_run
from html_tags import HOSTILE, Tags
from PIL import Image

from pathsynth.__main__ import main
from pathsynth.atlas.content import Accepted, AtlasClass, AtlasContent, AtlasFiles, read_atlas
from pathsynth.atlas.encoding import ENCODINGS, Encoding, choose_encoding, encode
from pathsynth.atlas.licences import Credit, credit_real_images
from pathsynth.atlas.look_alikes import rank_look_alikes
from pathsynth.atlas.page import MAX_BYTES, render_atlas
from pathsynth.core.errors import DataError
from pathsynth.core.io import read_npz
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.data.archives import write_archive
from pathsynth.data.settings import FolderDataset, MedmnistDataset, PhantomDataset

DRAWN = "Drawn phantoms, not tissue."


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_images(write_run(tmp_path_factory.mktemp("written")))


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(written, tmp_path / "run")


def read(run: Path, limit: int = 50, show_real: bool = False) -> AtlasContent:
    files = AtlasFiles(
        run / "data" / "prepared", run / "data" / "generated", run / "metrics" / "evaluation.json", run / "plots" / "evaluation"
    )
    return read_atlas(load_params(run / "params.yaml"), files, run / "unpacked", limit, show_real)


@pytest.fixture(scope="module")
def content(written: Path) -> AtlasContent:
    return read(written)


@pytest.fixture(scope="module")
def page(content: AtlasContent) -> str:
    return render_atlas(content)


def fake_class(label: str, count: int, side: int = 16, sentence: str = "many pink dots", seed: int = 0) -> AtlasClass:
    """A class with `count` images of noise, which compress as badly as any image."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
    accepted = [Accepted(image, slot, 0, 7 * slot, 0.9, 0) for slot, image in enumerate(images)]
    return AtlasClass(label, sentence, sentence, count, count, count, accepted, np.empty((0, side, side, 3), np.uint8))


def other_data(content: AtlasContent, *classes: AtlasClass) -> AtlasContent:
    """The atlas of a data set that is no phantom, with other classes."""
    return replace(
        content, stand_in=False, noun="class", nouns="classes", classes=classes, look_alikes=[], credit=None, benchmark="other"
    )


class TestContent:
    def test_every_image_is_labelled_with_its_seed(self, run, page):
        attempts = (run / "data" / "generated" / "attempts.csv").read_text().splitlines()[1:]
        accepted = [line.split(",") for line in attempts if line.endswith(",1")]
        gallery = page.partition('id="look-alikes"')[0]
        shown = re.findall(
            r"<b>synthetic phantom</b>.*?slot (\d+), attempt (\d)</span>\s*<span>seed (\d+)<", gallery, re.DOTALL
        )
        assert shown == [(slot, attempt, seed) for _, slot, attempt, seed, *_ in accepted]
        tiles = gallery.count('class="tile"')
        assert tiles == len(accepted) == 18 * N
        pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
        assert all(picture["alt"] for picture in pictures)
        assert page.count("<b>synthetic phantom</b>") + page.count("<b>drawn by a program</b>") == len(pictures) - 1

    def test_images_are_the_accepted_ones_in_order(self, run, content):
        images = read_npz(run / "data" / "generated" / "accepted.npz", ["train_images"])["train_images"]
        shown = [one.image for each in content.classes for one in each.accepted]
        assert np.array_equal(np.stack(shown), images)

    def test_picture_of_a_small_set_is_lossless(self, content, page):
        source = re.search(r'class="tile".*?src="data:image/png;base64,([^"]+)"', page, re.DOTALL).group(1)
        with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
            assert np.array_equal(np.asarray(picture.convert("RGB")), content.classes[0].accepted[0].image)
        assert "shown losslessly, 32 px wide" in page

    def test_page_says_what_to_look_for_and_what_it_was_drawn_with(self, page):
        assert "many pink mucus dots" in page and "drawn with the sentence “an area with mucus”" in page

    def test_described_prompt_is_shown_once(self, run):
        tree = tiny_tree()
        tree["loras"]["r2"]["prompts"] = "described"
        write_params(run / "params.yaml", tree)
        page = render_atlas(read(run))
        assert "The sentence that these images were drawn with." in page and "drawn with the sentence “" not in page

    def test_counts_of_attempts_and_of_the_judge(self, run, content):
        table = [line.split(",") for line in (run / "plots/evaluation/accepted.csv").read_text().splitlines()[1:]]
        hits = Counter(row[0] for row in table if row[0] == row[3])
        assert [one.n_confirmed for one in content.classes] == [hits[slug] for slug in SLUGS]
        assert [one.attempts for one in content.classes] == [24] * N
        disputed = sum(one.judge != index for index, each in enumerate(content.classes) for one in each.accepted)
        assert disputed == 18 * N - hits.total() > 0

    def test_limit_keeps_the_first_images(self, run):
        content = read(run, limit=5)
        assert [len(one.accepted) for one in content.classes] == [5] * N
        assert [one.slot for one in content.classes[3].accepted] == list(range(5))
        assert "The first 5 are shown." in render_atlas(content)

    def test_phantoms_say_in_every_section_that_they_are_drawn(self, page):
        sections = page.split("<section ")[1:]
        assert len(sections) == N + 3 and all(DRAWN in section for section in sections)
        assert DRAWN in page.partition("<nav")[0] and "a stand-in, not medical" in page.partition("<footer")[2]

    def test_other_data_sets_are_not_called_phantoms(self, content):
        page = render_atlas(other_data(content, fake_class("a", 2), fake_class("b", 2)))
        assert "hantom" not in page and "tissue" not in page.partition("<script>")[0].partition("</style>")[2]
        assert page.count("<b>synthetic image</b>") == 4 and "research only, not for diagnosis" in page

    def test_page_states_what_it_is_not_for(self, page):
        for text in (
            "Not for diagnosis",
            "Not a substitute for real slides",
            "No pathologist has reviewed",
            "99.1 %",
            "97.2 %",
        ):
            assert text in page, text

    def test_quiz_picture_has_an_alternative_text_without_the_answer(self, page):
        quiz = page.partition('<section id="quiz"')[2].partition('id="quiz-answers"')[0]
        assert 'alt="The synthetic phantom to name"' in quiz and not any(label in quiz for label in labels.PATHMNIST)

    def test_page_is_well_formed_nested_and_needs_no_other_file(self, page):
        found = Tags(page).found
        ids = Counter(attributes["id"] for _, attributes in found if "id" in attributes)
        assert max(ids.values()) == 1
        addresses = [attributes["href"] for _, attributes in found if "href" in attributes]
        assert {address[1:] for address in addresses if address[0] == "#"} <= set(ids)
        assert all(address[0] == "#" or address == "data:," for address in addresses)
        assert all(attributes["src"].startswith("data:") for _, attributes in found if "src" in attributes)
        levels = [int(tag[1]) for tag, _ in found if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))

    def test_nothing_moves(self, page):
        assert not re.search(r"animation|transition|scroll-behavior", page)

    def test_equal_input_gives_equal_text(self, run, page):
        assert render_atlas(read(run)) == page and str(run) not in page

    def test_hostile_names_and_sentences_stay_text(self, content):
        quoting = "\" onload='alert(1)' x=\"</script>`${alert(2)}"
        classes = fake_class(HOSTILE, 3, sentence=quoting), fake_class(quoting, 3, sentence=HOSTILE)
        pairs = rank_look_alikes({"gate": np.array([[3, 1], [1, 3]]), "judge": np.array([[3, 1], [1, 3]])})
        hostile = replace(
            other_data(content, *classes), look_alikes=pairs, benchmark=HOSTILE, lora=HOSTILE, credit=Credit(HOSTILE)
        )
        page = render_atlas(hostile)
        found = Tags(page).found
        assert [tag for tag, _ in found].count("script") == 1
        assert not any(name.startswith("on") for _, attributes in found for name in attributes)
        assert page.count("&lt;script&gt;") > 10

    def test_only_the_script_of_the_page_may_run(self, page):
        import hashlib

        script = page.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page.replace(
            "&#39;", "'"
        )


class TestLookAlikes:
    def test_pairs_are_ranked_by_both_observers(self):
        gate = np.array([[8, 2, 0], [0, 10, 0], [1, 0, 9]])
        judge = np.array([[10, 0, 0], [0, 6, 4], [0, 2, 8]])
        first, second, third = rank_look_alikes({"gate": gate, "judge": judge})
        assert (first.first, first.second, first.share) == (1, 2, 6 / 40)
        assert first.counts == {"gate": (0, 0), "judge": (4, 2)}
        assert (second.first, second.second, second.share) == (0, 1, 2 / 40)
        assert (third.first, third.second, third.share) == (0, 2, 1 / 40)
        assert len(rank_look_alikes({"gate": gate, "judge": judge}, limit=1)) == 1

    def test_perfect_observers_confuse_nothing(self, content):
        assert rank_look_alikes({"gate": np.diag([5, 0, 5]), "judge": np.diag([5, 0, 5])}) == []
        assert "confused no two tissues" in render_atlas(replace(content, look_alikes=[]))

    def test_page_shows_pairs_side_by_side(self, content, page):
        section = page.partition('id="look-alikes"')[2].partition('id="quiz"')[0]
        assert section.count("<h3") == len(content.look_alikes) == 5
        assert section.count("<img") == 5 * 2 * 6
        pair, (there, back) = content.look_alikes[0], content.look_alikes[0].counts["judge"]
        first, second = (content.classes[index].label for index in (pair.first, pair.second))
        assert f"Judge: {there} {first} seen as {second}, {back} the other way." in section


class TestLicences:
    def medmnist(self, flag: str, size: int = 64) -> MedmnistDataset:
        channels = 1 if flag == "breastmnist" else 3
        return MedmnistDataset(
            source="medmnist", flag=flag, archive_size=64, root="~", labels=flag, channels=channels, image_size=size
        )

    def test_creative_commons_sets_and_phantoms_are_shown_with_credit(self):
        credit = credit_real_images(self.medmnist("pathmnist"))
        assert credit and "CC BY 4.0" in credit.text and "Yang et al." in credit.text and credit.url.endswith("/by/4.0/")
        assert "resized" not in credit.text and "resized to 32 px" in credit_real_images(self.medmnist("bloodmnist", 32)).text
        assert credit_real_images(self.medmnist("dermamnist")).url.endswith("/by-nc/4.0/")
        phantom = PhantomDataset(source="phantom", image_size=32, train_per_tissue=1, val_per_tissue=1, test_per_tissue=1)
        assert credit_real_images(phantom).text == "drawn by pathsynth, MIT"

    def test_set_with_another_licence_is_not_shown(self, monkeypatch):
        import medmnist

        monkeypatch.setitem(medmnist.INFO["bloodmnist"], "license", "all rights reserved")
        assert credit_real_images(self.medmnist("bloodmnist")) is None

    def test_own_images_are_shown_only_on_request(self):
        folder = FolderDataset(source="folder", path="x", labels=["a", "b"], image_size=32)
        assert credit_real_images(folder) is None
        assert "that of the image files" in credit_real_images(folder, show_real=True).text

    def test_hidden_real_images_are_not_in_the_page(self, run, monkeypatch):
        monkeypatch.setattr("pathsynth.atlas.content.credit_real_images", lambda *_: None)
        shutil.rmtree(run / "data" / "prepared")
        page = render_atlas(read(run))
        assert "Phantoms of the data set" not in page and page.count("<img") == 18 * N + 60 + 1

    def test_real_images_come_from_the_test_split(self, run, content):
        stored, indices = (np.load(run / "data" / "prepared" / f"test_{name}.npy") for name in ("images", "labels"))
        for index, one in enumerate(content.classes):
            assert np.array_equal(one.real, stored[indices == index][:6])


class TestSize:
    def test_a_lossless_image_and_grey_one_keep_their_pixels(self):
        rng = np.random.default_rng(0)
        for image in (
            rng.integers(0, 256, (16, 16, 3), np.uint8),
            np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3),
        ):
            source = encode(image, Encoding()).source.partition(",")[2]
            with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
                assert np.array_equal(np.asarray(picture.convert("RGB")), image)

    def test_encoding_falls_with_the_budget(self):
        rng = np.random.default_rng(0)
        images = list(rng.integers(0, 256, (3, 224, 224, 3), np.uint8))
        chosen = [ENCODINGS.index(choose_encoding(images, budget)) for budget in (10**7, 150_000, 60_000, 1)]
        assert chosen[0] == 0 and chosen == sorted(set(chosen)) and chosen[-1] == len(ENCODINGS) - 1
        assert "reduced from 224 to 112 px" in Encoding(60, 112).describe(224)
        assert "reduced" not in Encoding(60, 112).describe(64)

    def test_fifty_images_per_class_stay_below_ten_megabytes(self, content):
        """Noise is the worst case: no real image compresses as badly."""
        page = render_atlas(other_data(content, *(fake_class(f"class {number}", 50, 64) for number in range(9))))
        assert "shown losslessly, 64 px wide" in page and page.count('class="tile"') == 50 * 9
        assert len(page.encode()) <= MAX_BYTES == 10_000_000

    def test_large_images_are_compressed_to_fit(self, content, monkeypatch):
        monkeypatch.setattr("pathsynth.atlas.page.MAX_BYTES", 500_000)
        page = render_atlas(other_data(content, *(fake_class(f"class {number}", 10, 128) for number in range(2))))
        assert "loses fine detail" in page and page.count("data:image/webp") == 20
        assert len(page.encode()) <= 500_000


class TestMissing:
    def test_class_without_an_accepted_image_says_so(self, run):
        generated = run / "data" / "generated"
        arrays = read_npz(generated / "accepted.npz", ["train_images", "train_labels"])
        kept = arrays["train_labels"][:, 0] != 4
        write_archive(generated / "accepted.npz", arrays["train_images"][kept], arrays["train_labels"][kept, 0])
        for path, ending in ((generated / "attempts.csv", ",1"), (run / "plots/evaluation/accepted.csv", "")):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(x for x in lines if not (x.startswith("mucus,") and x.rstrip().endswith(ending))))
        page = render_atlas(read(run))
        Tags(page)
        assert "accepted none of 6 attempts at this tissue" in page and page.count('class="tile"') == 18 * (N - 1)

    def test_no_accepted_image_at_all_leaves_no_quiz(self, content):
        empty = [replace(one, accepted=(), n_accepted=0) for one in content.classes]
        page = render_atlas(replace(content, classes=empty))
        Tags(page)
        assert page.count("accepted none of") == N and "A quiz needs accepted images" in page and 'class="tile"' not in page

    @pytest.mark.parametrize("classes", [2, 20])
    def test_any_number_of_classes(self, content, classes):
        page = render_atlas(other_data(content, *(fake_class(f"kind {number}", 2) for number in range(classes))))
        Tags(page)
        assert page.count("<kbd>") == min(9, classes) and page.count("data-sentence=") == classes

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("data/generated/accepted.npz", "no images have been generated"),
            ("data/generated/attempts.csv", "no images have been generated"),
            ("plots/evaluation/raw.csv", "the images have not been scored"),
            ("plots/evaluation/accepted.csv", "the images have not been scored"),
            ("metrics/evaluation.json", "the images have not been scored"),
        ],
    )
    def test_missing_file_names_the_remedy(self, run, name, reason):
        (run / name).unlink()
        with pytest.raises(DataError, match=rf"{re.escape(name)}: is missing: {reason}\. Run `make repro` first\.$"):
            read(run)

    def test_files_of_another_run_are_refused(self, run):
        attempts = run / "data" / "generated" / "attempts.csv"
        whole = attempts.read_text()
        attempts.write_text("".join(whole.splitlines(keepends=True)[:-1]))
        with pytest.raises(DataError, match=r"attempts\.csv: does not list the 162 images of accepted\.npz .*`make repro`\.$"):
            read(run)
        attempts.write_text(whole)
        judged = run / "plots" / "evaluation" / "accepted.csv"
        judged.write_text("".join(judged.read_text().splitlines(keepends=True)[:-1]))
        with pytest.raises(DataError, match=r"accepted\.csv: does not list .*Run `make repro`\.$"):
            read(run)

    def test_unmeasured_accuracy_is_left_out(self, run):
        path = run / "metrics" / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"real_images": {}}))
        page = render_atlas(read(run))
        assert "recognises" not in page and "the judge, which chose nothing" not in page


class TestCommand:
    def test_command_writes_the_page_or_ends_in_one_line(self, run, monkeypatch):
        monkeypatch.chdir(run)
        result = CliRunner().invoke(main, ["atlas"])
        assert result.exit_code == 0 and "162 images of 9 tissues, " in result.output, result.output
        before = (run / "reports" / "atlas.html").read_text(encoding="utf-8")
        assert not list((run / "scratch").iterdir())
        (run / "data" / "generated" / "accepted.npz").write_bytes(b"damaged")
        result = CliRunner().invoke(main, ["atlas"])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "accepted.npz" in result.stderr
        assert (run / "reports" / "atlas.html").read_text(encoding="utf-8") == before

    def test_command_warns_of_a_large_page(self, run, monkeypatch):
        monkeypatch.chdir(run)
        assert CliRunner().invoke(main, ["atlas", "-n", "1"]).stderr == ""
        monkeypatch.setattr("pathsynth.cli.atlas.MAX_BYTES", 10_000)
        result = CliRunner().invoke(main, ["atlas", "-n", "1"])
        assert result.exit_code == 0
        assert result.stderr == "warning: the page is larger than 10 kB; show fewer images with -n\n"

    def test_command_says_when_real_images_are_left_out(self, run, monkeypatch):
        monkeypatch.chdir(run)
        monkeypatch.setattr("pathsynth.atlas.content.credit_real_images", lambda *_: None)
        assert "--show-real" in CliRunner().invoke(main, ["atlas", "-n", "2"]).output
