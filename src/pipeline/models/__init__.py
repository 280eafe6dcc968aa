"""Survival models behind one interface: one file a method, see `registry` for how they are found and `interface` for the contract."""

from pipeline.models.registry import available_models, build_model, load_model_config, model_variants, parse_model

__all__ = ["available_models", "build_model", "load_model_config", "model_variants", "parse_model"]
