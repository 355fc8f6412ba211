"""What evidence says of a bundle, for people and for tools: model card, ML-BOM, and a page. Pure."""
