from pathlib import Path

from pipeline.logs import logged
from pipeline.measuring import measured
from pipeline.slides.encoders.network import EncoderSettings
from pipeline.slides.foreign import import_chunk
from pipeline.slides.listing import read_chunk
from pipeline.slides.stages.features import ReadingSettings, features_chunk
from pipeline.slides.stages.manifests import publish_features

benchmark = Path(snakemake.log[0]).parents[1] / "benchmarks" / f"{Path(snakemake.log[0]).stem}.tsv"

with logged(snakemake.log[0]), measured(benchmark):
    p, published = snakemake.params, Path(snakemake.output[0])
    store, manifest = published.parent, published.with_name(f"{published.name}.tsv")
    slides = read_chunk(snakemake.input.slides, int(p.chunk), p.chunks, p.folder)
    encoder = p.encoder
    if p.made:
        import_chunk(slides, store, manifest, encoder)
    else:
        features_chunk(
            snakemake.input.patches,
            slides,
            store,
            manifest,
            encoder,
            overrides=p.encoders,
            running=EncoderSettings(**p.running),
            reading=ReadingSettings(**p.reading),
        )
    publish_features(manifest, published)
