import base64
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation.comparison import compare_models
from pipeline.evaluation.model import evaluate_model
from pipeline.evaluation.summary import write_summary
from pipeline.report.page import write_report
from pipeline.report.slides import MAX_OVERLAYS
from pipeline.tables import write_table

Study = runpy.run_path(str(Path(__file__).parents[1] / "evaluation/synthetic_study.py"))["Study"]
EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "wbr"}
MODELS = ("snn", "mlp+wide", "coxnet+clinical")
NO_FIGURES = {"models": {}, "comparison": None, "ranks": None, "calibration": None}  # where a test is about the rest of the page
QUALITY = ["slide_id", "status", "stage", "reason", "patches", "mpp_source", "tissue_mm2", "flags"]


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class Site:
    """Two networks, a Cox model as reference, a failed fold, a model not run, a control, three slides; `write` makes the report."""

    def __init__(self, root: Path) -> None:
        self.root, self.study = root, Study(root, patients=90)
        self.study.add_model("snn", signal=2.0, drop=("P001",))
        self.study.add_model("mlp+wide", signal=0.0)
        self.study.change("mlp+wide", 1, failure="the loss is not finite")
        self.study.add_model("coxnet+clinical", signal=0.5, seed=2, modalities=["clinical"])
        for folder in self.study.folders("coxnet+clinical"):
            history = pd.read_csv(folder / "history.tsv", sep="\t").tail(1).assign(epoch=0)
            write_table(history, folder / "history.tsv")
        rows, paths = [], {"patients": self.study.patients, "splits": self.study.splits}
        for model in sorted(MODELS):
            rows.append(root / model / "evaluation.tsv")
            paths |= {"output": rows[-1], "calibration": root / model / "calibration.tsv"}
            paths["shuffled"] = [self.study.add_model(f"{model}/shuffled0", signal=0.0, seed=5)]
            evaluate_model(cohort="demo", model=model, endpoint="os", folds=self.study.folders(model), bootstrap=50, seed=1, **paths)
        self.pairs, self.ranks = root / "comparison.tsv", root / "ranks.tsv"
        folders = {model: self.study.folders(model) for model in MODELS}
        paths = {"patients": self.study.patients, "splits": self.study.splits, "output": self.pairs, "ranks": self.ranks}
        compare_models(cohort="demo", folders=folders, bootstrap=50, seed=1, **paths)
        write_summary(rows, {"transmil": "needs wsi"}, root / "summary.tsv")
        self.flow, self.excluded, self.manifest = root / "flow.tsv", root / "excluded.tsv", root / "manifest-uni2.tsv"
        steps = [("follow-up table", 100, 0, ""), ("usable follow-up", 90, 10, "time is 0 or negative")]
        write_table(pd.DataFrame(steps, columns=["step", "patients", "dropped", "reason"]), self.flow)
        out = [("patient", f"Q{i}", "cohort", "time is 0 or negative", "Check the unit.") for i in range(10)]
        out.append(("slide", "S2", "tissue", "no tissue found", "Lower `min_tissue`."))
        write_table(pd.DataFrame(out, columns=["kind", "id", "stage", "reason", "remedy"]), self.excluded)
        slides = [
            ("S0", "ok", 120, 0.25, "header", 31.4),
            ("S1", "ok", 80, 0.5, "table", 20.0),
            ("S2", "failed", None, 0.25, "header", 0.0),
        ]
        write_table(pd.DataFrame(slides, columns=["slide_id", "status", "patches", "mpp", "mpp_source", "tissue_mm2"]), self.manifest)
        self.omics = root / "omics_tables.tsv"
        tables = [("omics.tsv.gz", "rnaseq", "counts", "detected", "log2(CPM + 1)", 95, 1496, 12)]
        write_table(
            pd.DataFrame(tables, columns=["file", "kind", "unit", "source", "transform", "patients", "features", "missing"]), self.omics
        )
        self.quality = root / "qc.tsv"
        found = [
            ("S0", "ok", "patches", "", 121, "header", 31.4, ""),
            ("S1", "ok", "patches", "", 80, "table", 20.0, "pen;blurred"),
            ("S2", "failed", "tissue", "slide S2: no tissue found.", None, "", None, ""),
        ]
        write_table(pd.DataFrame(found, columns=QUALITY), self.quality)
        self.overlays = [root / f"tissue/S{i}.png" for i in range(3)]
        for i, path in enumerate(self.overlays):
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (800, 600), (200, 100 + i, 150)).save(path)

    def write(self, name: str = "report.html", **changes: object) -> str:
        options = {
            "cohort": "demo",
            "title": "Demo study",
            "summary": self.root / "summary.tsv",
            "models": {model: self.study.folders(model) for model in MODELS},
            "reference": "coxnet+clinical",
            "comparison": self.pairs,
            "ranks": self.ranks,
            "calibration": {model: self.root / model / "calibration.tsv" for model in MODELS},
            "omics_tables": self.omics,
            "patients": self.study.patients,
            "splits": self.study.splits,
            "flow": self.flow,
            "excluded": self.excluded,
            "manifests": [self.manifest],
            "quality": self.quality,
            "overlays": self.overlays,
            "provenance": {"version": "1.2.3", "settings": {"seed": 7, "bins": [1, 2]}},
        }
        write_report(**(options | changes), output=self.root / name, figures=self.root / "figures")
        return (self.root / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(site: Site) -> str:
    return site.write()


def images(html: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(rf'src="data:image/{kind};base64,([^"]+)"', html)]


def test_the_page_is_well_formed_small_and_loads_nothing(html: str):
    page = Page(html)
    assert len(html) < 5e6
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]+", "", html))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))


def test_the_figures_inside_the_page_load_nothing_either(html: str):
    figures = images(html, r"svg\+xml")
    assert len(figures) == 1 + 1 + 3 * 3 - 1, "forest and ranks; survival, training and calibration of a model, no epochs of a Cox model"
    for svg in figures:
        links = re.findall(rb'(?:href|src)="([^"]*)"', svg)
        assert all(link.startswith(b"#") for link in links)
        assert b"<image" not in svg
        assert b"<script" not in svg


def test_every_image_says_in_words_what_it_shows(html: str):
    assert all(attributes.get("alt") for tag, attributes in Page(html).tags if tag == "img")


def test_links_within_the_page_have_a_target(html: str):
    tags = Page(html).tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in tags if tag == "a"} <= ids


def test_the_page_says_what_was_found_and_what_was_not(site: Site, html: str):
    text = Page(html).text
    summary = pd.read_csv(site.root / "summary.tsv", sep="\t").set_index("model")
    for expected in (
        "90 patients",
        f"{site.study.table.event.sum()} events",
        "each patient tested once",
        f"snn has the highest C-index: {summary.c_index['snn']:.3f}",
        f"[{summary.c_index_ci_low['snn']:.3f}, {summary.c_index_ci_high['snn']:.3f}]",
        f"{summary.noise_floor['snn']:.3f} {summary.c_index_shuffled['snn']:.3f}",
        f"{summary.hazard_ratio['snn']:.2f} [{summary.hazard_ratio_ci_low['snn']:.2f}, {summary.hazard_ratio_ci_high['snn']:.2f}]",
        f"Splits {summary.splits['snn']} : the first digits",
        "clinical reference",
        "no epochs",
        "The noise floor is what that habit prints",
        "omics.tsv.gz rnaseq counts detected log2(CPM + 1) 95 1496 12",
        f"{summary.c_index_best_epoch['snn']:.3f}",
        f"+{summary.optimism['snn']:.3f}",
        "Not told apart from chance (interval contains 0.5):",
        "mlp+wide: failed in fold 1 (the loss is not finite); its figures are those of the other folds.",
        "only 2 folds",
        "Without a prediction: 1 (lacks omics).",
        "Without a prediction: 30 (fold 1 failed).",
        "transmil needs wsi",
        "1 slides and 10 patients were excluded",
        "Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7 and 2 more",
        "header (1), table (1)",
        "version 1.2.3 settings.seed 7 settings.bins 1, 2",
        "3 of 3 slides, excluded slides first.",
    ):
        assert expected in text


def test_models_are_ordered_by_c_index_whatever_their_order_in_the_summary(site: Site, html: str):
    cards = re.findall(r"<h3>([^<]+)</h3>", html)
    summary = pd.read_csv(site.root / "summary.tsv", sep="\t").dropna(subset=["c_index"])
    assert cards == list(summary.sort_values("c_index", ascending=False).model)
    assert cards[0] == "snn"


def test_excluded_slides_come_first_in_the_gallery(html: str):
    assert re.findall(r"<figcaption><b>(S\d)</b>", html) == ["S2", "S0", "S1"]


def test_figures_are_also_files_and_are_those_of_the_page(site: Site, html: str):
    names = {"forest.svg", "ranks.svg", "training-snn.svg", "training-mlp+wide.svg"}
    names |= {f"{figure}-{model}.svg" for figure in ("km", "calibration") for model in MODELS}
    assert {path.name for path in (site.root / "figures").iterdir()} == names
    assert {(site.root / "figures" / name).read_bytes() for name in names} == set(images(html, r"svg\+xml"))


def test_the_same_study_gives_the_same_bytes(site: Site, html: str):
    before = {path.name: path.read_bytes() for path in (site.root / "figures").iterdir()}
    assert site.write("again.html", overlays=site.overlays[::-1]) == html
    assert {path.name: path.read_bytes() for path in (site.root / "figures").iterdir()} == before
    assert not any(b"<dc:date>" in svg for svg in before.values())


def test_fonts_are_at_least_nine_points_where_they_are_shown(site: Site, html: str):
    """Sizes in the SVG are in points' user units at 72 an inch, and images are never wider than their column."""
    for path in (site.root / "figures").iterdir():
        sizes = [float(size) for size in re.findall(r"font: ([\d.]+)px|font-size: ([\d.]+)px", path.read_text()) for size in size if size]
        assert sizes
        assert min(sizes) >= 9


def test_numbers_at_risk_are_those_of_the_groups(site: Site, html: str):
    svg = (site.root / "figures/km-snn.svg").read_text()
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert any(text.startswith("High risk (44 patients") for text in texts)
    assert any(text.startswith("Low risk (45 patients") for text in texts)
    assert "44" in texts
    assert "45" in texts


def test_text_of_every_table_is_escaped(site: Site, tmp_path: Path):
    def poisoned(path: Path, *columns: str) -> Path:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        table[list(columns)] = EVIL
        write_table(table, tmp_path / path.name)
        return tmp_path / path.name

    summary = pd.read_csv(site.root / "summary.tsv", sep="\t", dtype=str, keep_default_na=False)
    summary[["modalities", "note", "failed_folds", "splits"]] = EVIL
    summary.loc[summary.model == "transmil", "model"] = EVIL
    write_table(summary, tmp_path / "summary.tsv")
    html = site.write(
        "evil.html",
        cohort=EVIL,
        title=EVIL,
        summary=tmp_path / "summary.tsv",
        flow=poisoned(site.flow, "step", "reason"),
        excluded=poisoned(site.excluded, "id", "stage", "reason", "remedy"),
        reference=EVIL,
        comparison=poisoned(site.pairs, "model_a", "note"),
        ranks=poisoned(site.ranks, "model"),
        omics_tables=poisoned(site.omics, "file", "kind", "unit", "source", "transform"),
        manifests=[poisoned(site.manifest, "status", "mpp_source")],
        quality=poisoned(site.quality, "slide_id", "status", "stage", "reason", "mpp_source", "flags"),
        provenance={EVIL: EVIL},
    )
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 10
    assert all(b"<script" not in svg for svg in images(html, r"svg\+xml"))


def test_an_unpredicted_reason_is_escaped_too(site: Site):
    site.study.change("snn", 1, unpredicted={"P001": EVIL})
    try:
        reason = site.write("reason.html", **(NO_FIGURES | {"models": {"snn": site.study.folders("snn")}}))
        assert EVIL not in reason
        assert "Without a prediction: 1 (<script>" in Page(reason).text
    finally:
        site.study.change("snn", 1, unpredicted={"P001": "lacks omics"})


def test_a_study_without_slides_or_models_still_has_a_page(site: Site, tmp_path: Path):
    write_summary([], {"snn": "no modality"}, tmp_path / "summary.tsv")
    empty = pd.DataFrame(columns=["kind", "id", "stage", "reason", "remedy"])
    write_table(empty, tmp_path / "excluded.tsv")
    changes = {"summary": tmp_path / "summary.tsv", "excluded": tmp_path / "excluded.tsv", "manifests": (), "quality": None, "overlays": ()}
    text = Page(site.write("bare.html", **changes, **NO_FIGURES, reference=None, omics_tables=None, provenance=None)).text
    assert "No model was evaluated." in text
    assert "Nothing was excluded." in text
    assert "snn no modality" in text
    assert "Tissue (mm²)" not in text


def test_a_model_all_of_whose_folds_failed_is_still_shown(site: Site, tmp_path: Path):
    study = Study(tmp_path, patients=30)
    study.add_model("snn", failure="out of memory")
    for k in range(3):
        (study.folder("snn", k) / "history.tsv").unlink()
    output = tmp_path / "snn/evaluation.tsv"
    paths = {"patients": study.patients, "splits": study.splits}
    evaluate_model(cohort="demo", model="snn", endpoint="os", folds=study.folders("snn"), output=output, bootstrap=10, seed=1, **paths)
    write_summary([output], {}, tmp_path / "summary.tsv")
    changes = {"summary": tmp_path / "summary.tsv", "models": {"snn": study.folders("snn")}, "comparison": None, "calibration": None}
    html = site.write("failed.html", **changes, **paths)
    text = Page(html).text
    assert "snn: failed in fold 0, 1, 2 (out of memory); it has no figures." in text
    assert "No model has figures." in text
    assert "0 models evaluated 0 not run, 1 failed" in text
    assert "only 0 folds" not in text
    assert not images(html, r"svg\+xml")  # neither a forest without a tree nor curves of nobody


def test_the_gallery_is_capped_and_says_how_many_more(site: Site, tmp_path: Path):
    overlays = [tmp_path / f"T{i:02d}.png" for i in range(30)]
    for path in overlays:
        path.write_bytes(site.overlays[0].read_bytes())
    overlays[3].write_bytes(b"not an image")
    html = site.write("many.html", overlays=overlays, **NO_FIGURES)
    assert len(re.findall("<figcaption><b>T", html)) == MAX_OVERLAYS
    assert len(images(html, "jpeg")) == MAX_OVERLAYS - 1
    text = Page(html).text
    assert "24 of 30 slides, excluded slides first; the other 6 overlays are in slides/tissue/" in text
    assert "overlay cannot be read" in text


def test_slides_that_failed_or_are_flagged_are_listed_on_the_page(html: str):
    text = Page(html).text
    assert "tissue and patches 2 1 51 201 header (1), table (1) uni2 2 1 51 200" in text
    assert "2 of 3 slides failed or are flagged: failed (1), blurred (1), pen (1)." in text
    assert "S2 failed: tissue slide S2: no tissue found. S1 pen blurred" in text
    assert "more in slides/qc.tsv" not in text


def test_more_flagged_slides_than_fit_are_counted(site: Site, tmp_path: Path):
    rows = [(f"S{i:03d}", "ok", "patches", "", 1, "header", 1.0, "pale") for i in range(62)]
    write_table(pd.DataFrame(rows, columns=QUALITY), tmp_path / "qc.tsv")
    text = Page(site.write("flagged.html", quality=tmp_path / "qc.tsv", **NO_FIGURES)).text
    assert "62 of 62 slides failed or are flagged: pale (62)." in text
    assert "… and 12 more in slides/qc.tsv" in text


def test_slides_without_a_flag_are_said_to_have_none(site: Site, tmp_path: Path):
    write_table(pd.DataFrame([("S0", "ok", "patches", "", 1, "header", 1.0, "")], columns=QUALITY), tmp_path / "qc.tsv")
    assert "No slide failed and none is flagged." in Page(site.write("clean.html", quality=tmp_path / "qc.tsv", **NO_FIGURES)).text


def without(path: Path, output: Path, *columns: str) -> Path:
    """The table with those columns emptied."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table[list(columns)] = ""
    write_table(table, output)
    return output


def test_a_study_without_a_control_says_how_to_run_one(site: Site, html: str, tmp_path: Path):
    command = "--config controls='{shuffled_labels: 3}'"
    assert command not in Page(html).text
    bare = without(site.root / "summary.tsv", tmp_path / "summary.tsv", "noise_floor", "c_index_shuffled")
    text = Page(site.write("control.html", summary=bare, **NO_FIGURES)).text
    assert command in text
    assert "Noise floor" not in text


def test_the_page_renders_without_what_is_optional(site: Site):
    names = ("reference", "omics_tables", "quality", "provenance")
    text = Page(site.write("least.html", **dict.fromkeys(names), **(NO_FIGURES | {"models": {"snn": site.study.folders("snn")}}))).text
    assert "Models against each other" not in text
    assert "clinical reference" not in text
    assert "Molecular table" not in text


def test_pairs_are_on_the_page_with_the_better_model_first(site: Site, html: str):
    pairs = pd.read_csv(site.pairs, sep="\t").set_index(["model_a", "model_b"])
    pair = pairs.loc[("snn", "coxnet+clinical")]
    assert pair.difference > 0, "the network sees the planted hazard"
    assert f"snn coxnet+clinical reference +{pair.difference:.3f}" in Page(html).text


def test_ranks_are_drawn_with_their_warning(html: str):
    assert "With so few folds".lower() in Page(html).text.lower()


def test_many_models_are_folded_away(site: Site, html: str, monkeypatch: pytest.MonkeyPatch):
    assert "<details" not in html
    monkeypatch.setattr("pipeline.report.page.OPEN_CARDS", 1)
    monkeypatch.setattr("pipeline.report.page.MATRIX_FROM", 3)
    models = {model: site.study.folders(model) for model in MODELS[:2]}
    many = site.write("folded.html", models=models, calibration=None)
    assert "Matrix of differences between all pairs of models" in many
    (site.root / "figures/differences.svg").unlink()
    assert "Click a model to open it." in Page(many).text
    assert many.count("<details") == 2


def test_a_patient_tested_in_every_repeat_is_counted_once(site: Site, tmp_path: Path):
    splits = pd.read_csv(site.study.splits, sep="\t")
    both = pd.concat([splits, splits.assign(fold=splits.fold + 3)])
    write_table(both, tmp_path / "splits.tsv")
    assert "6 folds each patient tested 2 times" in Page(site.write("twice.html", splits=tmp_path / "splits.tsv", **NO_FIGURES)).text
    write_table(both[(both.fold != 3) | (both.set == "train")], tmp_path / "splits.tsv")
    assert "5 folds 90 patients tested" in Page(site.write("some.html", splits=tmp_path / "splits.tsv", **NO_FIGURES)).text
