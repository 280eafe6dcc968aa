"""Configuration and the functions that the rules share."""

import atexit
import functools
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

SRC = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SRC)  # this file and script:

from pipeline import study as studies
from pipeline.config import check_config, read_yaml, validate
from pipeline.contents import Contents, Place, Source, by_content
from pipeline.driver import claim, is_at_work
from pipeline.errors import InputError
from pipeline.identifiers import chunk_of
from pipeline.jobs import cores
from pipeline.jobs.cluster import Cluster
from pipeline.jobs.ending import Ending, notify
from pipeline.jobs.finished import fold_settings_digest, parts
from pipeline.jobs.node import end_surely_on_sigterm
from pipeline.jobs.records import expire, is_recorded
from pipeline.jobs.run import leave_driver
from pipeline.machine import MachineError, machine_fault
from pipeline.placeholders import without_braces
from pipeline.progress import Progress
from pipeline.provenance import code_version
from pipeline.slides.drawn import drawn_by_hand


def or_stop(function, *arguments):
    """The function's value; bad input ends Snakemake with the message alone."""
    try:
        return function(*arguments)
    except (InputError, MachineError, OSError) as error:
        if told := machine_fault(error) or (error if isinstance(error, InputError) else None):
            raise WorkflowError(str(told)) from None
        raise


or_stop(without_braces, workflow.basedir, "Move the folder of the workflow to a path without them.")
shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(SRC)}; ")  # shell:
CONFIG = Path(workflow.basedir) / "config/config.yaml"
if workflow.is_main_process:
    for file in (CONFIG, *workflow.config_settings.configfiles):
        or_stop(check_config, file, sys.argv[1:])


configfile: str(CONFIG)


def code(script, *modules):
    """The version of all that a rule's script runs; with `modules`, what it imports by name."""
    return code_version(Path(workflow.basedir) / "workflow/scripts" / f"{script}.py", *modules)


def code_of_model(script):
    """The same with the one model of the job: the files of the others are no part of it."""
    return lambda wildcards: code(script, f"pipeline.models.{wildcards.model.partition('+')[0]}")


def watch():
    """Say every minute how far the run is, stages in the order of the rules, and at its end what failed; returns what says so."""
    order = {rule.name: place for place, rule in enumerate(workflow.rules)}
    jobs = sorted(workflow.dag.needrun_jobs(), key=lambda job: order[job.rule.name])
    remote = [job.jobid for job in jobs if not job.is_local]
    fail = lambda text: workflow.scheduler.executor_error_callback(WorkflowError(text))
    cluster = None if workflow.local_exec else Cluster(Path(".snakemake/slurm"), logger.error, remote, fail)
    for handler in logger.handlers if cluster else []:
        handler.addFilter(cluster)
    progress = Progress({job.jobid: job.rule.name for job in jobs}, logger.info)
    ending = Ending(progress, logger.error, cluster)
    logger.addHandler(progress)
    logger.addHandler(ending)
    progress.keep_saying(*([cluster.doing] if cluster else []))
    return ending


SETTINGS = or_stop(validate, config, "config", "config/config.yaml or --config")
COMMAND_LINE = or_stop(validate, workflow.config_settings.overwrite_config, "config", "--config", False)
TORCH_ENV = f"../../envs/torch-{SETTINGS['torch']}.yaml"  # of slides, MRI and training
ALONE = not is_at_work(Path(".snakemake"))  # no other driver finishes files here while this one looks at them
if workflow.remote_exec:
    leave_driver()
    end_surely_on_sigterm()
elif workflow.is_main_process and not workflow.output_settings.dryrun:
    DRIVER = claim(Path(".snakemake"))
ENDING = []  # what says how the run ended, once it has begun


onstart:
    if workflow.is_main_process:
        or_stop(DRIVER.begin)
        # spare cores are taken where jobs run here, and where nobody bounds memory or GPUs of all jobs together
        here = workflow.local_exec and not {"mem_mb", "gpu"} & set(workflow.global_resources)
        cores.lay_out(workflow.cores if here else 0)
        ENDING.append(watch())


onsuccess:
    notify(SETTINGS["notify"], ENDING[0].done(), "done")


onerror:
    notify(SETTINGS["notify"], ENDING[0].failed(shlex.join(["snakemake", *sys.argv[1:]])), "failed")


# Content decides what is stale, whatever times and paths say; digests are kept, so that a start reads nothing twice.
Source.contents = Contents(Path(".snakemake/contents.json"))
if workflow.is_main_process:
    atexit.register(Source.contents.keep)


@functools.cache
def study(cohort):
    return or_stop(studies.load_study, SETTINGS, cohort, COMMAND_LINE)


def of_study(function):
    """`function(study)` as an input or params function of a rule with the wildcard `cohort`."""
    return lambda wildcards: or_stop(function, study(wildcards.cohort))


def compared(function):
    """`function(study)` as a parameter in which a file that is named stands for its content, and a folder for nothing."""
    return lambda wildcards: by_content(or_stop(function, study(wildcards.cohort)))


def given(function, output):
    """`function(study)`, files that the user gives, as input of the rule that makes `output`.

    Their times count only until Snakemake has a record, in which their contents are a parameter, and where a rule makes them.
    """

    def files(wildcards):
        settings = study(wildcards.cohort)
        found = or_stop(function, settings)
        made = settings["synthetic"] or not is_recorded(output.format(**dict(wildcards.items())))
        return found if made else [file if Path(file).is_relative_to(TCGA) else ancient(file) for file in found]

    return files


def given_bag(function, output):
    """The same for one file of a modality of bags, of which `function(wildcards)` tells."""

    def file(wildcards):
        path = function(wildcards)
        made = path.startswith("results/") or not is_recorded(output.format(**dict(wildcards.items())))
        return path if made else ancient(path)

    return file


def setting(*keys):
    """One value of the study, by the keys that lead to it."""
    return lambda wildcards: functools.reduce(lambda block, key: block[key], keys, study(wildcards.cohort))


def chunks(cohort):
    return range(study(cohort)["slides"]["chunks"])


def folds(cohort):
    return range(or_stop(studies.fold_count, study(cohort)))


def has_slides(cohort):
    return "wsi" in or_stop(studies.modalities, study(cohort))


def manifest(wildcards):
    """The cohort's manifest of features, or nothing where it has no slides."""
    encoder = study(wildcards.cohort)["slides"]["encoder"]
    return [f"results/{wildcards.cohort}/slides/manifest-{encoder}.tsv"] if has_slides(wildcards.cohort) else []


def quality(wildcards):
    """The figures of the cohort's slides, or nothing where none is opened."""
    opened = has_slides(wildcards.cohort) and not studies.made_features(study(wildcards.cohort))
    return [f"results/{wildcards.cohort}/slides/qc.tsv"] if opened else []


def matrix(wildcards):
    return [f"results/{wildcards.cohort}/omics/omics.h5"] if study(wildcards.cohort)["omics"]["tables"] else []


def bags(wildcards):
    """The cohort's bags that are not slides."""
    return [f"results/{wildcards.cohort}/bags/{modality}.h5" for modality in sorted(study(wildcards.cohort)["bags"])]


def model_files(wildcards, name):
    """`name` of every model of the cohort that can run."""
    models = or_stop(studies.models_to_run, study(wildcards.cohort))
    return [f"results/{wildcards.cohort}/{model}/{name}" for model in models]


def training_parts(cohort, folds):
    """Names of the jobs that train so many folds of one model. A profile may say how many one takes: dry runs know no executor."""
    profile = workflow.resource_settings.overwrite_resources.get("train_fold", {})
    usual = profile["folds_per_job"].value if "folds_per_job" in profile else None
    return parts(folds, or_stop(studies.folds_per_job, study(cohort), usual))


def settings_of_folds(wildcards):
    """Everything that training the folds of a model depends on, but its code."""
    return by_content(or_stop(studies.fold_settings, study(wildcards.cohort), wildcards.model))


def fold_tables(wildcards):
    """The tables of the folds of one model, one per job."""
    return [
        f"results/{wildcards.cohort}/{wildcards.model}/folds_{part}.tsv"
        for part in training_parts(wildcards.cohort, len(folds(wildcards.cohort)))
    ]


def shuffled_tables(wildcards):
    """The same of one model's repetitions on permuted labels."""
    count = study(wildcards.cohort)["controls"]["shuffled_labels"] * len(folds(wildcards.cohort))
    return [
        f"results/{wildcards.cohort}/{wildcards.model}/shuffled_{part}.tsv"
        for part in training_parts(wildcards.cohort, count)
    ]


def all_fold_tables(wildcards):
    """The tables of the folds of every model of the cohort that can run."""
    jobs = training_parts(wildcards.cohort, len(folds(wildcards.cohort)))
    return [file for part in jobs for file in model_files(wildcards, f"folds_{part}.tsv")]


def scenario_table(wildcards):
    """The table of the scenarios of missing modalities, or nothing where the study asks for none."""
    asked = study(wildcards.cohort)["missing"]["scenarios"]
    return [f"results/{wildcards.cohort}/scenarios.tsv"] if asked else []


def chunk_files(stage):
    """The manifests of a stage of the slides, one a chunk."""
    return lambda w: [f"results/{w.cohort}/slides/{stage}/chunk{i}.tsv" for i in chunks(w.cohort)]


def encoded_chunks(wildcards):
    """The folders of the chunks' features."""
    return [
        f"results/{wildcards.cohort}/slides/features/{wildcards.encoder}/chunk{i}" for i in chunks(wildcards.cohort)
    ]


def encoded_manifests(wildcards):
    """The manifests in those folders, of which Snakemake is to compare the contents: of folders it compares the times, which say nothing."""
    return [Source(f"{folder}/manifest.tsv") for folder in encoded_chunks(wildcards)]


def encoding(wildcards):
    """All that the features of a patch depend on, but the code: the encoder's entry, its weights by content, how patches are read."""
    settings = study(wildcards.cohort)
    entry = or_stop(studies.encoder_entry, settings, wildcards.encoder)
    return by_content({"entry": entry, "reading": studies.patch_reading(settings)})


def own_chunk_files(stage):
    """The same for a stage that a cohort with features made elsewhere does not have."""
    return lambda w: [] if studies.made_features(study(w.cohort)) else chunk_files(stage)(w)


def own_chunk(wildcards):
    """The patches to encode; nothing where the features were made elsewhere."""
    made = studies.made_features(study(wildcards.cohort))
    return [] if made else f"results/{wildcards.cohort}/slides/patches/chunk{wildcards.chunk}.tsv"


def slide_folder(wildcards):
    """Where the cohort's slides, or its features made elsewhere, are; what is in it stands in their list."""
    made = or_stop(studies.made_features, study(wildcards.cohort))
    return Place(made["folder"] if made else studies.slide_folder(study(wildcards.cohort)))


def md5sums(wildcards):
    """The cohort's list of checksums, by content, if it gives one."""
    settings = study(wildcards.cohort)
    listed = settings["slides"]["md5sums"]
    return listed and Source(studies.data_path(settings, listed))


@functools.cache
def drawn(cohort):
    """The contours that were drawn by hand, by slide, with their contents."""
    return drawn_by_hand(f"results/{cohort}/slides/tissue")


def drawn_contours(wildcards):
    """Those of one chunk, so that an edit of one is noticed."""
    count = study(wildcards.cohort)["slides"]["chunks"]
    found = drawn(wildcards.cohort).items()
    return {slide: content for slide, content in found if chunk_of(slide, count) == int(wildcards.chunk)}


def slide_files(wildcards):
    """What must exist before a chunk's slides can be opened: the demo's are made first."""
    synthetic = study(wildcards.cohort)["synthetic"]
    return [f"results/{wildcards.cohort}/data/made/chunk{wildcards.chunk}.tsv"] if synthetic else []


def encoder_gpus(wildcards):
    """Neither handcrafted features nor a CPU need a GPU; a misspelt encoder stops before anything is computed."""
    settings = study(wildcards.cohort)
    or_stop(studies.check_encoder, settings, wildcards.encoder)
    if wildcards.encoder == "stain_texture" or studies.made_features(settings):
        return 0
    devices = settings["slides"]["device"]
    return sum(device != "cpu" for device in ([devices] if isinstance(devices, str) else devices))


def bag_source(wildcards):
    """How the cohort's file describes the bags of one modality."""
    sources = or_stop(studies.bag_sources, study(wildcards.cohort))
    if wildcards.modality not in sources:
        raise WorkflowError(
            f"Cohort {wildcards.cohort} names no bags {wildcards.modality!r}: {', '.join(sources) or 'none'}"
        )
    return sources[wildcards.modality]


def mri_table(wildcards):
    """The table of MRI files of a modality."""
    table = bag_source(wildcards).get("manifest")
    if table is None:
        raise WorkflowError(f"The bags {wildcards.modality!r} of cohort {wildcards.cohort} are not made from MRI files")
    return table


def of_bag(*keys):
    """Those of `keys` that the cohort's file states for the modality; the others have their defaults in the package."""
    return lambda wildcards: {key: value for key, value in bag_source(wildcards).items() if key in keys}


def mri_encoder(wildcards):
    """The entry of the encoder that describes slices, its weights by content."""
    return by_content(
        or_stop(studies.encoder_entry, study(wildcards.cohort), bag_source(wildcards).get("encoder", "resnet50_cut"))
    )


def mri_gpus(wildcards):
    """Neither volumes nor a CPU need a GPU."""
    source = bag_source(wildcards)
    devices = source.get("device", "auto")
    devices = [devices] if isinstance(devices, str) else devices
    return 0 if source.get("rows") == "volume" else sum(device != "cpu" for device in devices)


def published(paper):
    """The published figures of one file of ``config/papers``."""
    return or_stop(read_yaml, f"{workflow.basedir}/config/papers/{paper}.yaml")


def published_summaries(wildcards):
    """The summaries of the cohorts with published figures whose follow-up is on disk."""
    cohorts = {cohort for entry in published(wildcards.paper)["published"] for cohort in entry["cohorts"]}
    known = sorted(cohorts & set(studies.cohort_names()))
    return [f"results/{cohort}/summary.tsv" for cohort in known if studies.has_data(study(cohort))]


wildcard_constraints:
    cohort=r"[A-Za-z0-9_]+",
    model=r"[a-z0-9_]+(\+[A-Za-z0-9_.]+)?",
    encoder=r"[A-Za-z0-9_.-]+",
    part=r"\d+(-\d+)?",
    modality=r"[a-z0-9_]+",
    chunk=r"\d+",
    paper=r"[a-z0-9_]+",
