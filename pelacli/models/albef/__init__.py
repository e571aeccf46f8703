"""ALBEF, built here because neither timm nor transformers has it."""
