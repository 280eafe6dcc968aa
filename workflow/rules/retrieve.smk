"""Public data for a machine with internet, into <data_dir>/tcga: ask, fetch, cut to a cohort (docs/retrieve.md).

Cohort files point at the outputs. Rules that need the internet are local, since the nodes of a cluster rarely have it. They carry no version
of their code, as the others do: what was fetched stays, whatever a new version of this project would fetch today.
"""

from pipeline.retrieve.settings import RetrieveSettings

RETRIEVE = or_stop(RetrieveSettings.of, SETTINGS["retrieve"])
TCGA = f"{SETTINGS['data_dir']}/tcga"
COMMON = f"{TCGA}/common"


wildcard_constraints:
    project=r"(?!common)[a-z]+",
    published=r"expression\.gz|probemap\.tsv|survival\.tsv",
    collection=r"[a-z0-9._]+?",


rule retrieve_tables:
    input:
        f"{TCGA}/{{project}}/clinical.tsv",
        f"{TCGA}/{{project}}/expression.tsv.gz",
        f"{COMMON}/h.all.v{RETRIEVE.msigdb_release}.symbols.gmt",
        f"{COMMON}/c2.cp.reactome.v{RETRIEVE.msigdb_release}.symbols.gmt",
        f"{COMMON}/hgnc_complete_set.txt",
    output:
        f"{TCGA}/{{project}}/files.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_tables.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("retrieve_tables"),
    script:
        "../scripts/retrieve_tables.py"


rule retrieve_slides_manifest:
    output:
        f"{TCGA}/{{project}}/slides_manifest.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_slides_manifest.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        base=RETRIEVE.gdc,
        projects=lambda w: RETRIEVE.projects_of(w.project),
    script:
        "../scripts/retrieve_slides_manifest.py"


# The slides are not declared outputs: Snakemake deletes a failed job's outputs, and finished slides must survive.
rule retrieve_slides_chunk:
    input:
        f"{TCGA}/{{project}}/slides_manifest.tsv",
    output:
        f"{TCGA}/{{project}}/slides_chunks/{{chunk}}.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_slides_{{chunk}}.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        base=RETRIEVE.gdc,
        folder=lambda w: f"{TCGA}/{w.project}/slides",
        chunks=RETRIEVE.chunks,
    script:
        "../scripts/retrieve_slides_chunk.py"


rule retrieve_slides:
    input:
        [f"{TCGA}/{{project}}/slides_chunks/{i}.tsv" for i in range(RETRIEVE.chunks)],
    output:
        f"{TCGA}/{{project}}/slides.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_slides.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("retrieve_slides"),
    script:
        "../scripts/retrieve_slides.py"


rule retrieve_published:
    output:
        f"{COMMON}/{{published}}",
    log:
        f"{COMMON}/logs/{{published}}.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        url=lambda w: RETRIEVE.address_of(w.published),
    script:
        "../scripts/retrieve_published.py"


rule retrieve_expression:
    input:
        matrix=f"{COMMON}/expression.gz",
        probemap=f"{COMMON}/probemap.tsv",
        survival=f"{COMMON}/survival.tsv",
        gene_sets=[studies.data_path(SETTINGS, file) for file in RETRIEVE.genes],
    output:
        f"{TCGA}/{{project}}/expression.tsv.gz",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_expression.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        projects=lambda w: RETRIEVE.projects_of(w.project),
        sample_types=list(RETRIEVE.sample_types),
        offset=RETRIEVE.expression_offset,
        code=code("retrieve_expression"),
    script:
        "../scripts/retrieve_expression.py"


rule retrieve_survival:
    input:
        f"{COMMON}/survival.tsv",
    output:
        f"{TCGA}/{{project}}/clinical.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_survival.log",
    conda:
        "../../envs/analysis.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        projects=lambda w: RETRIEVE.projects_of(w.project),
        code=code("retrieve_survival"),
    script:
        "../scripts/retrieve_survival.py"


rule retrieve_cbioportal_clinical:
    output:
        f"{TCGA}/{{project}}/cbioportal_clinical.tsv",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_cbioportal_clinical.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        base=RETRIEVE.cbioportal,
        studies=lambda w: RETRIEVE.studies_of(w.project),
    script:
        "../scripts/retrieve_cbioportal_clinical.py"


rule retrieve_cbioportal_omics:
    input:
        [studies.data_path(SETTINGS, file) for file in RETRIEVE.genes],
    output:
        f"{TCGA}/{{project}}/cbioportal_omics.tsv.gz",
    log:
        f"{TCGA}/{{project}}/logs/retrieve_cbioportal_omics.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        base=RETRIEVE.cbioportal,
        studies=lambda w: RETRIEVE.studies_of(w.project),
        sample_types=list(RETRIEVE.sample_types),
    script:
        "../scripts/retrieve_cbioportal_omics.py"


rule retrieve_gene_sets:
    output:
        f"{COMMON}/{{collection}}.v{RETRIEVE.msigdb_release}.symbols.gmt",
    log:
        f"{COMMON}/logs/retrieve_gene_sets_{{collection}}.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        base=RETRIEVE.msigdb,
        release=RETRIEVE.msigdb_release,
    script:
        "../scripts/retrieve_gene_sets.py"


rule retrieve_aliases:
    output:
        f"{COMMON}/hgnc_complete_set.txt",
    log:
        f"{COMMON}/logs/retrieve_aliases.log",
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        url=RETRIEVE.hgnc,
    script:
        "../scripts/retrieve_aliases.py"
