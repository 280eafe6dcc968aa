from pipeline.imaging.cases import mri_features
from pipeline.imaging.mri import MriSettings
from pipeline.logs import logged

with logged(snakemake.log[0]):
    p = snakemake.params
    mri_features(
        snakemake.input[0],
        snakemake.output[0],
        MriSettings(**p.settings),
        patient_id=p.patient_id,
        overrides=p.encoders,
        running=p.running,
        **p.encoder,
    )
