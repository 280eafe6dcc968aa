from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/slides.smk"
include: "workflow/rules/omics.smk"
include: "workflow/rules/imaging.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/papers.smk"
include: "workflow/rules/retrieve.smk"
include: "workflow/rules/records.smk"


# On a cluster these run beside the driver: seconds of work, or downloads, which need a machine with internet.
localrules:
    all,
    list_slides,
    slide_manifest,
    gene_groups,
    patients,
    splits,
    summary,
    resources,
    published,
    retrieve_tables,
    retrieve_slides_manifest,
    retrieve_slides_chunk,
    retrieve_slides,
    retrieve_published,
    retrieve_expression,
    retrieve_survival,
    retrieve_cbioportal_clinical,
    retrieve_cbioportal_omics,
    retrieve_gene_sets,
    retrieve_aliases,


rule all:
    default_target: True
    input:
        "results/demo/summary.tsv",
        "results/demo/report.html",
